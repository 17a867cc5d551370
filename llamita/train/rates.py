"""Learning rates of trained models by their size, and of some weights by their names: "*.q_proj.weight=0.5"."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.optim import Optimizer

from llamita.checks import nearest, quoted
from llamita.errors import UsageError

Shares = Sequence[tuple[str, float]]  # a glob of names, and the share of the learning rate
# AdamW's rates for a trained model of hidden size 2048: by method, and of tasks that need smaller steps.
BY_METHOD: Mapping[str, float] = {"lora": 5e-4, "dora": 5e-4, "qlora": 5e-4, "full": 5e-5}
BY_TASK: Mapping[str, float] = {"dpo": 0.1, "grpo": 0.1, "reward": 0.4}  # shares
# How many times AdamW's rate another optimizer takes, for all weights and for an adapter, whose B begins at zero.
# Measured at about these: 40 steps of the built-in task on cria (hidden size 256) bring the held-out loss from 9.77 to
# all weights adamw 1.19, muon 1.51, lion 1.72, adafactor 1.03; lora adamw 0.96, muon 0.29, lion 1.22, adafactor 1.21.
OF_ADAMW: Mapping[str, tuple[float, float]] = {
    "adamw": (1, 1), "adamw8bit": (1, 1), "muon": (13, 13), "lion": (0.35, 0.35), "adafactor": (5, 50),
}  # fmt: skip


def rate_of_trained(task: str, method: str, hidden_size: int, optimizer: str = "adamw") -> float:
    """The rate for a model that has been trained before; smaller models take larger steps.

    Source of AdamW's: "LoRA Without Regret" (Thinking Machines, 2025): for Llama (2000 / hidden size) ** 0.78, ten
    times as much for adapters as for all weights. Of the others: OF_ADAMW, measured at one size.
    """
    times = OF_ADAMW[optimizer][method != "full"]
    rate = times * BY_METHOD[method] * BY_TASK.get(task, 1.0) * (2048 / hidden_size) ** 0.78
    return float(f"{rate:.2g}")


def parsed_rates(text: str) -> Shares:
    """The globs and shares of a text. Raises UsageError for what is no "GLOB=SHARE"."""
    shares = []
    for part in filter(None, text.split(",")):
        glob, _, share = part.rpartition("=")
        try:
            shares.append((glob.strip(), float(share)))
        except ValueError:
            glob = ""
        if not glob or not 0 <= shares[-1][1] <= 1000:
            raise UsageError(f"rates has {quoted(part)}: give a glob of names and a share, as *.q_proj.weight=0.5")
    return shares


def set_shares(optimizers: list[Optimizer], model: nn.Module, shares: Shares, *, lr: float) -> None:
    """Give weights a share of `lr`, that of the first glob their name fits; others keep what their optimizer says.

    Groups are split, the fastest first. Raises UsageError for a glob that fits no weight.
    """
    names = {id(weight): name for name, weight in model.named_parameters() if weight.requires_grad}
    for glob, _ in shares:
        if not any(fnmatchcase(name, glob) for name in names.values()):
            hint = nearest(glob, names.values()) or f": the first weights are {', '.join([*names.values()][:3])}, ..."
            raise UsageError(f"rates has {quoted(glob)}, which no trained weight is named{hint}")
    for optimizer in optimizers:
        optimizer.param_groups[:] = [
            part for group in optimizer.param_groups for part in _split(group, names, shares, lr)
        ]


def _split(group: dict[str, Any], names: Mapping[int, str], shares: Shares, lr: float) -> list[dict[str, Any]]:
    weights = group["params"]
    rates = {id(weight): _rate(names[id(weight)], shares, lr, usual=group["initial_lr"]) for weight in weights}
    by_rate = {rate: [w for w in weights if rates[id(w)] == rate] for rate in sorted(set(rates.values()), reverse=True)}
    return [{**group, "params": some, "lr": rate, "initial_lr": rate} for rate, some in by_rate.items()]


def _rate(name: str, shares: Shares, lr: float, *, usual: float) -> float:
    return next((lr * share for glob, share in shares if fnmatchcase(name, glob)), usual)
