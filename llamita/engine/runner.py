"""Runs one step of the engine: copies blocks, passes tokens through the model, returns logits."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from llamita.cache.paged import PagedCache
from llamita.context.paged import Paged
from llamita.engine.scheduler import Request, Scheduled, Step
from llamita.generation.protocol import LanguageModel

Outcome = Tensor | Exception


class Row(NamedTuple):
    """Tokens of a request from number `start` on. level: 0, or the number of a guess, from 1."""

    request: Request
    start: int
    token_ids: list[int]
    level: int


class StepRunner:
    """Runs steps over a paged cache: all tokens of a model in one pass, and those of each of its adapters in another.

    models: the model under None, and those with an adapter under their names.
    """

    def __init__(self, models: Mapping[str | None, LanguageModel], pages: PagedCache) -> None:
        self.models, self.pages = models, pages

    @torch.no_grad()
    def run(self, step: Step, guesses: Mapping[Request, Sequence[int]] = MappingProxyType({})) -> list[Outcome]:
        """For each part of a step the fp32 logits (1 + n, V) of the token that follows it, and of those that follow
        each of its n guesses; or the error that it ended in.

        Where a pass of several requests fails, each of them is tried alone: nobody fails for another.
        """
        for source, target, tokens in step.copies:
            self.pages.copy(source, target, tokens)
        found: dict[int, Outcome] = {}
        for adapter in dict.fromkeys(part.request.adapter for part in step.scheduled):
            own = [number for number, part in enumerate(step.scheduled) if part.request.adapter == adapter]
            rows = [_rows(step.scheduled[number], guesses.get(step.scheduled[number].request, ())) for number in own]
            found |= zip(own, self._tried(self.models[adapter], rows), strict=True)
        return [found[number] for number in range(len(step.scheduled))]

    def _tried(self, model: LanguageModel, parts: Sequence[list[Row]]) -> list[Outcome]:
        try:
            return self._pass(model, parts)
        except Exception as error:
            if len(parts) == 1:
                return [error]
            return [self._tried(model, [part])[0] for part in parts]

    def _pass(self, model: LanguageModel, parts: Sequence[list[Row]]) -> list[Outcome]:
        """The logits (rows, V) of what comes after the rows of each part."""
        # Rows of one length and level next to each other are attended to together.
        rows = [(number, row) for number, part in enumerate(parts) for row in part]
        rows.sort(key=lambda one: (len(one[1].token_ids), one[1].level))
        logits = self._logits(model, [row for _, row in rows])
        if len(rows) == len(parts):
            order = {number: at for at, (number, _) in enumerate(rows)}
            return [logits[order[number], None] for number in range(len(parts))]
        own = [[at for at, (other, _) in enumerate(rows) if other == number] for number in range(len(parts))]
        return [logits[mine] for mine in own]

    def _logits(self, model: LanguageModel, rows: Sequence[Row]) -> Tensor:
        config = model.config
        context = Paged(
            self.pages,
            starts=[row.start for row in rows],
            counts=[len(row.token_ids) for row in rows],
            tables=[row.request.block_ids for row in rows],
            scale=config.softmax_scale,
            window=config.sliding_window,
            backend=config.attn_implementation,
            levels=[row.level for row in rows],
        )
        given = torch.tensor([[token for row in rows for token in row.token_ids]], device=model.device)
        return model(given, context=context, logits_to_keep=context.last, return_dict=True).logits[0].float()


def _rows(part: Scheduled, guesses: Sequence[int]) -> list[Row]:
    """The tokens of a part as one row, and each of its guesses as a row after it."""
    first = Row(part.request, part.start, part.new_token_ids, 0)
    end = part.start + part.num_tokens
    return [first, *(Row(part.request, end + n, [token], n + 1) for n, token in enumerate(guesses))]
