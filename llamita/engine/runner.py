"""Runs one step of the engine: copies blocks, passes tokens through the model, returns logits."""

from collections.abc import Sequence

import torch
from torch import Tensor

from llamita.cache.paged import PagedCache
from llamita.context.paged import Paged
from llamita.engine.scheduler import Scheduled, Step
from llamita.generation.protocol import LanguageModel


class StepRunner:
    """Runs steps of a model over a paged cache: all tokens of a step in one pass."""

    def __init__(self, model: LanguageModel, pages: PagedCache) -> None:
        self.model, self.pages = model, pages

    @torch.no_grad()
    def run(self, step: Step) -> list[Tensor | Exception]:
        """For each part of a step the fp32 logits (V,) of the token that follows it, or the error that it ended in.

        Where a pass of several requests fails, each of them is tried alone: nobody fails for another.
        """
        for source, target, tokens in step.copies:
            self.pages.copy(source, target, tokens)
        # Parts of one length next to each other are attended to together.
        order = sorted(range(len(step.scheduled)), key=lambda number: step.scheduled[number].num_tokens)
        found = dict(zip(order, self._tried([step.scheduled[number] for number in order]), strict=True))
        return [found[number] for number in range(len(step.scheduled))]

    def _tried(self, parts: Sequence[Scheduled]) -> list[Tensor | Exception]:
        try:
            return list(self._pass(parts))
        except Exception as error:
            if len(parts) == 1:
                return [error]
            return [self._tried([part])[0] for part in parts]

    def _pass(self, parts: Sequence[Scheduled]) -> Tensor:
        """The logits (B, V) of what comes after the parts."""
        config = self.model.config
        ids = [token for part in parts for token in part.new_token_ids]
        context = Paged(
            self.pages,
            starts=[part.start for part in parts],
            counts=[part.num_tokens for part in parts],
            tables=[part.request.block_ids for part in parts],
            scale=config.softmax_scale,
            window=config.sliding_window,
            backend=config.attn_implementation,
        )
        given = torch.tensor([ids], device=self.model.device)
        return self.model(given, context=context, logits_to_keep=context.last, return_dict=True).logits[0].float()
