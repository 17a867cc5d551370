"""What a run does to its model to save memory and time, before anything is trained."""

from contextlib import suppress

from llamita.errors import UnsupportedError
from llamita.model import plan
from llamita.model.llama import LlamaForCausalLM
from llamita.plans import training


def prepare(model: LlamaForCausalLM) -> None:
    """Let layers train by written-out backward passes, where the model is a plain Llama without other plans."""
    if plan.active(model):
        return
    with suppress(UnsupportedError):  # then it trains by its plain layers, which is slower and no error
        training.enable(model, list(model.model.layers), model.config)
