"""What a run does to save memory and time, before anything is trained."""

from contextlib import suppress

import torch
from torch.optim import Optimizer

from llamita.adapters.frozen import keep_in_halves
from llamita.errors import UnsupportedError, UsageError
from llamita.model import plan
from llamita.model.llama import LlamaForCausalLM
from llamita.plans import offload, recompute, training
from llamita.train import optim
from llamita.train.allocator import keep_freed_memory_later
from llamita.train.master_weights import with_masters
from llamita.train.method import METHODS
from llamita.train.rates import parsed_rates, set_shares
from llamita.train.recipe import Recipe

OFFLOADS_ACTIVATIONS, OFFLOADS_OPTIMIZER = ("activations", "both"), ("optimizer", "both")


def prepare(model: LlamaForCausalLM, recipe: Recipe, *, processes: int = 1, device: torch.device | None = None) -> None:
    """Give a model the plans and the dtype of a recipe.

    Layers train by written-out backward passes where the model is a plain Llama without other plans; these recompute
    all but products anyway. Frozen weights that bf16 holds exactly are kept in it. device: where the weights will be,
    if they are still to come. Raises UsageError where a saving does not fit the device or the number of processes.
    """
    check(recipe, device or model.device, processes)
    keep_freed_memory_later()
    if processes == 1 and METHODS[recipe.method].is_adapter:  # several shard whole layers, of one dtype
        keep_in_halves(model)
    layers = list(model.model.layers)
    if not plan.active(model) and not recipe.is_cut:  # written-out layers know whole matrices and rows alone
        with suppress(UnsupportedError):  # then it trains by its plain layers, which is slower and no error
            training.enable(model, layers, model.config)
    is_selective_already = recipe.recompute == "selective" and "training" in plan.active(model)
    if recipe.recompute != "none" and not is_selective_already:
        recompute.enable(model, layers, every_n_layers=recipe.recompute_every, policy=recipe.recompute)
    if recipe.offload in OFFLOADS_ACTIVATIONS:
        offload.enable(model, layers)
    if recipe.weights == "bf16":
        for weight in model.parameters():  # not model.to, which cannot swap fake weights
            weight.data = weight.data.to(torch.bfloat16)


def check(recipe: Recipe, device: torch.device, processes: int) -> None:
    """Raise UsageError where a saving does not fit the device or the number of processes."""
    if recipe.offload != "none" and device.type == "cpu":
        raise UsageError("offload moves to the CPU's memory what is on a GPU, and this run is on the CPU: leave it out")
    alone = {
        "weights bf16": recipe.weights == "bf16",
        "offload of the optimizer": recipe.offload in OFFLOADS_OPTIMIZER,
        "optimizer_step in-backward": recipe.optimizer_step == "in-backward",
    }
    if processes > 1 and (name := next((name for name, is_on in alone.items() if is_on), None)):
        raise UsageError(f"{name} is for one process, and {processes} shard weights and optimizer: leave it out")


def optimizers(model: LlamaForCausalLM, recipe: Recipe) -> list[Optimizer]:
    """The optimizers of a recipe, of fp32 copies where the weights are bf16 or the optimizer's state is on the CPU."""

    def build(of: torch.nn.Module) -> list[Optimizer]:
        found = optim.build(
            recipe.optimizer, of, lr=recipe.rate, weight_decay=recipe.weight_decay, is_exact=recipe.exact_scaling
        )
        set_shares(found, of, parsed_rates(recipe.rates), lr=recipe.rate)
        return found

    if recipe.weights == "fp32" and recipe.offload not in OFFLOADS_OPTIMIZER:
        return build(model)
    device = torch.device("cpu") if recipe.offload in OFFLOADS_OPTIMIZER else model.device
    return with_masters(model, build, device=device)
