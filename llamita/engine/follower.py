"""The other processes of a model that several share: they run the passes that the engine of the first one runs.

The first process schedules, samples and speaks. What a pass needs is plain data: token ids, where they stand, and the
blocks of their texts; every process has the blocks' keys and values of its own heads.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from llamita.engine.limits import pages_of
from llamita.engine.runner import Rows, StepRunner
from llamita.generation.logprobs import prompt_logprobs
from llamita.model.fingerprint import weights_digest
from llamita.model.llama import LlamaForCausalLM
from llamita.parallel.followers import Commands, LostProcess


class Follower:
    """The model of this process, and its part of the cache once the first process has said how large that is."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        self.model = model
        self._runner: StepRunner | None = None

    @property
    def runner(self) -> StepRunner:
        """What runs passes over the cache."""
        assert self._runner is not None, "a cache comes before the first pass"
        return self._runner

    def allocate(self, num_blocks: int, block_size: int) -> None:
        """Make the cache."""
        self._runner = StepRunner({None: self.model}, pages_of(self.model, num_blocks, block_size))

    def logits(self, rows: Sequence[list[Any]]) -> None:
        """Take part in a pass."""
        self.runner.logits(self.model, Rows(*rows))

    def prompt_logprobs(self, token_ids: Sequence[int]) -> None:
        """Take part in the pass that tells a prompt's log-probabilities."""
        prompt_logprobs(self.model, torch.tensor([token_ids], device=self.model.device))


# What the first process tells, by `StepRunner.together`.
COMMANDS: Mapping[str, Callable[..., object]] = {
    "allocate": Follower.allocate,
    "copy": lambda follower, *copied: follower.runner.pages.copy(*copied),
    "logits": Follower.logits,
    "last_hidden_state": lambda follower, token_ids: follower.runner.last_hidden_state(token_ids),
    "prompt_logprobs": Follower.prompt_logprobs,
    "weights_digest": lambda follower: weights_digest(follower.model),
}


def run(model: LlamaForCausalLM, commands: Commands) -> None:
    """Do what the engine of the first process does, until that is closed. Raises LostProcess."""
    follower = Follower(model)
    with torch.inference_mode():  # as the engine does
        for name, values in commands:
            try:
                COMMANDS[name](follower, *values)
            except RuntimeError as error:  # of a collective
                raise LostProcess(f"a pass of all processes failed: {error}") from error
