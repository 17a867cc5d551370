"""Runs one step of the engine: copies blocks, passes tokens through the model, returns logits."""

from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import compress
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from llamita.cache.paged import PagedCache
from llamita.context.paged import Paged
from llamita.engine.scheduler import Request, Scheduled, Step
from llamita.generation.protocol import LanguageModel
from llamita.model.plan import stand_in_of

if TYPE_CHECKING:
    from llamita.parallel.followers import Followers


class Rows(NamedTuple):
    """Tokens of texts that a pass computes, one row after the other, in columns.

    tables: the blocks of each row's text. starts: the number of its first token there. counts: how many there are.
    levels: 0, or the number of a draft. wanted: whether the logits of what comes after it are. token_ids: of all rows.
    """

    tables: list["array[int]"]
    starts: list[int]
    counts: list[int]
    levels: list[int]
    wanted: list[bool]
    token_ids: list[int]

    @classmethod
    def of(cls, parts: Sequence[Scheduled]) -> "Rows":
        """The rows of these parts of a step."""
        rows = cls([], [], [], [], [], [])
        for request, start, count in parts:
            end = start + count
            rows.add(request.block_ids, start, request.token_ids[start:end], is_wanted=end == len(request.token_ids))
        return rows

    def add(self, table: "array[int]", start: int, token_ids: list[int], *, level: int = 0, is_wanted: bool) -> None:
        """Append a row."""
        self.tables.append(table)
        self.starts.append(start)
        self.counts.append(len(token_ids))
        self.levels.append(level)
        self.wanted.append(is_wanted)
        self.token_ids.extend(token_ids)

    def add_drafts(self, parts: Sequence[Scheduled], drafts: "Drafts") -> dict[Request, list[int]]:
        """Append a row for each draft; returns the numbers of the logits that follow those of a request.

        Rows see what those of lower levels write, which come first.
        """
        drafted: dict[Request, list[int]] = {}
        number = sum(self.wanted)
        for level in range(max(map(len, drafts.values()), default=0)):
            for request, start, count in parts:
                if level < len(own := drafts.get(request, ())):
                    end = start + count + level
                    self.add(request.block_ids, end, [own[level]], level=level + 1, is_wanted=True)
                    drafted.setdefault(request, []).append(number)
                    number += 1
        return drafted


class Computed(NamedTuple):
    """Parts of a step that were computed in one pass, and what the next token of their texts depends on.

    ends: those that reach the end of their text. logits: fp32 (n, V), of what follows each of these, then of what
    follows their drafts. drafted: the numbers among them of those after a request's drafts.
    """

    parts: Sequence[Scheduled]
    ends: Sequence[Request]
    logits: Tensor
    drafted: Mapping[Request, list[int]] = MappingProxyType({})


class Failed(NamedTuple):
    """A part of a step that ended in an error."""

    request: Request
    error: Exception


Outcome = Computed | Failed
Drafts = Mapping[Request, Sequence[int]]
NO_DRAFTS: Drafts = MappingProxyType({})
ALONE = nullcontext()


class StepRunner:
    """Runs steps over a paged cache: all tokens of a model in one pass, and those of each of its adapters in another.

    models: the model under None, and those with an adapter under their names. followers: the other processes of a
    model that several share, which do the same (see `engine.follower`).
    """

    def __init__(
        self, models: Mapping[str | None, LanguageModel], pages: PagedCache, followers: "Followers | None" = None
    ) -> None:
        self.models, self.pages, self.followers = models, pages, followers
        self._run: object | None = None

    def begin_run(self) -> None:
        """Say that nobody else changes a model from now on until this is called again, so that steps need not look."""
        self._run = object()

    def together(self, name: str, *values: Any) -> AbstractContextManager[None]:
        """Let the other processes do what the block does. Raises LostProcess where it fails, as they cannot go back."""
        return ALONE if self.followers is None else _followed(self.followers, name, *values)

    def last_hidden_state(self, token_ids: Sequence[int], adapter: str | None = None) -> Tensor:
        """The last hidden states (T, D) of a text, read without a cache."""
        model = self.models[adapter]
        with torch.no_grad(), self.together("last_hidden_state", list(token_ids)):
            return model.last_hidden_state(torch.tensor([token_ids], device=model.device))[0]

    def run(self, step: Step, drafts: Drafts = NO_DRAFTS) -> list[Outcome]:
        """Compute the parts of a step, and the drafts of those that reach the end of their text.

        Where a pass of several requests fails, each of them is tried alone: nobody fails for another. For callers in
        inference mode.
        """
        for copied in step.copies:
            with self.together("copy", *copied):
                self.pages.copy(*copied)
        parts: dict[str | None, list[Scheduled]] = {}
        for part in step.scheduled:
            parts.setdefault(part.request.adapter, []).append(part)
        return [outcome for name, own in parts.items() for outcome in self._tried(self.models[name], own, drafts)]

    def _tried(self, model: LanguageModel, parts: Sequence[Scheduled], drafts: Drafts) -> list[Outcome]:
        """What becomes of the parts of one model."""
        rows = Rows.of(parts)
        ends = [part.request for part in compress(parts, rows.wanted)]
        drafted = rows.add_drafts(parts, drafts)
        try:
            with self.together("logits", rows):
                return [Computed(parts, ends, self.logits(model, rows), drafted)]
        except Exception as error:
            if len(parts) == 1:
                return [Failed(parts[0].request, error)]
            return [outcome for part in parts for outcome in self._tried(model, [part], drafts)]

    def logits(self, model: LanguageModel, rows: Rows) -> Tensor:
        """The fp32 logits (rows, V) of what comes after each row that wants them, in one pass; of the last if none."""
        config = model.config
        context = Paged(
            self.pages,
            starts=rows.starts,
            counts=rows.counts,
            tables=rows.tables,
            scale=config.softmax_scale,
            window=config.sliding_window,
            backend=config.attn_implementation,
            levels=rows.levels,
            wanted=rows.wanted,
            run=self._run,
        )
        plan = stand_in_of(cast("nn.Module", model))
        if plan is not None and (logits := plan.read_rows(rows.token_ids, context)) is not None:
            return logits
        # From NumPy, as torch reads lists of numbers several times more slowly.
        given = torch.from_numpy(np.array([rows.token_ids])).to(context.device)
        logits = model(given, context=context, logits_to_keep=context.last, return_dict=True).logits[0]
        return logits if logits.dtype == torch.float32 else logits.float()


@contextmanager
def _followed(followers: "Followers", name: str, *values: Any) -> Iterator[None]:
    """Tell others what the block does, and that it has failed."""
    followers.tell(name, *values)
    try:
        yield
    except Exception as error:
        raise followers.lost(error) from error
