"""Runs one step of the engine: copies blocks, passes tokens through the model, returns logits."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from llamita.cache.paged import PagedCache
from llamita.context.paged import Paged
from llamita.engine.scheduler import Scheduled, Step
from llamita.generation.protocol import LanguageModel


class StepRunner:
    """Runs steps over a paged cache: all tokens of a model in one pass, and those of each of its adapters in another.

    models: the model under None, and those with an adapter under their names.
    """

    def __init__(self, models: Mapping[str | None, LanguageModel], pages: PagedCache) -> None:
        self.models, self.pages = models, pages

    @torch.no_grad()
    def run(self, step: Step) -> list[Tensor | Exception]:
        """For each part of a step the fp32 logits (V,) of the token that follows it, or the error that it ended in.

        Where a pass of several requests fails, each of them is tried alone: nobody fails for another.
        """
        for source, target, tokens in step.copies:
            self.pages.copy(source, target, tokens)
        found: dict[int, Tensor | Exception] = {}
        for adapter in dict.fromkeys(part.request.adapter for part in step.scheduled):
            own = [number for number, part in enumerate(step.scheduled) if part.request.adapter == adapter]
            # Parts of one length next to each other are attended to together.
            own.sort(key=lambda number: step.scheduled[number].num_tokens)
            outcomes = self._tried(self.models[adapter], [step.scheduled[number] for number in own])
            found |= zip(own, outcomes, strict=True)
        return [found[number] for number in range(len(step.scheduled))]

    def _tried(self, model: LanguageModel, parts: Sequence[Scheduled]) -> list[Tensor | Exception]:
        try:
            return list(self._pass(model, parts))
        except Exception as error:
            if len(parts) == 1:
                return [error]
            return [self._tried(model, [part])[0] for part in parts]

    def _pass(self, model: LanguageModel, parts: Sequence[Scheduled]) -> Tensor:
        """The logits (B, V) of what comes after the parts."""
        config = model.config
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
        given = torch.tensor([ids], device=model.device)
        return model(given, context=context, logits_to_keep=context.last, return_dict=True).logits[0].float()
