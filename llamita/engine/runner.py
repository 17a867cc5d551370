"""Runs one step of the engine: copies blocks, passes tokens through the model, returns logits."""

from collections.abc import Sequence

import torch
from torch import Tensor

from llamita.cache.paged import PagedCache
from llamita.context.paged import Paged
from llamita.engine.scheduler import Scheduled, Step
from llamita.generation.protocol import LanguageModel


class StepRunner:
    """Runs steps of a model over a paged cache.

    Requests that compute one token share a pass; a longer part of a request has a pass of its own. How a step is cut
    into passes does not change any number of it with the CPU's kernels (see docs/determinism.md).
    """

    def __init__(self, model: LanguageModel, pages: PagedCache) -> None:
        self.model, self.pages = model, pages

    @torch.no_grad()
    def run(self, step: Step) -> list[Tensor | Exception]:
        """For each part of a step the fp32 logits (V,) of the token that follows it, or the error that it ended in.

        Where a pass of several requests fails, each of them is tried alone: nobody fails for another.
        """
        for source, target, tokens in step.copies:
            self.pages.copy(source, target, tokens)
        single = [number for number, one in enumerate(step.scheduled) if one.num_tokens == 1]
        passes = [single] if single else []
        passes += [[number] for number, one in enumerate(step.scheduled) if one.num_tokens > 1]
        found: dict[int, Tensor | Exception] = {}
        while passes:
            numbers = passes.pop(0)
            try:
                logits = self._pass([step.scheduled[number] for number in numbers])
                found |= dict(zip(numbers, logits, strict=True))
            except Exception as error:
                if len(numbers) == 1:
                    found[numbers[0]] = error
                else:
                    passes += [[number] for number in numbers]
        return [found[number] for number in range(len(step.scheduled))]

    def _pass(self, parts: Sequence[Scheduled]) -> Tensor:
        """The logits (B, V) of what comes after parts of one length."""
        config, tokens = self.model.config, parts[0].num_tokens
        ids = torch.tensor([part.request.token_ids[part.start : part.start + tokens] for part in parts])
        context = Paged(
            self.pages,
            [part.start for part in parts],
            [part.request.block_ids for part in parts],
            tokens,
            scale=config.softmax_scale,
            window=config.sliding_window,
            backend=config.attn_implementation,
        )
        output = self.model(ids.to(self.model.device), context=context, logits_to_keep=1, return_dict=True)
        return output.logits[:, -1].float()
