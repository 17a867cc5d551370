"""Runs one step of the engine: copies blocks, passes tokens through the model, returns logits."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain
from operator import itemgetter
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


class Logits(NamedTuple):
    """The fp32 logits (rows, V) of a pass, and the numbers of a part's own: of what follows it and its drafts.

    A part that does not reach the end of its text has none: what follows it is known.
    """

    of_pass: Tensor
    rows: Sequence[int]


Outcome = Logits | Exception


def first_rows(parts: Sequence[Logits]) -> Tensor:
    """The logits (B, V) of what follows each part; without drafts those of a pass, and no copy."""
    whole, numbers = parts[0].of_pass, [one.rows[0] for one in parts]
    if any(one.of_pass is not whole for one in parts):
        return torch.stack([one.of_pass[one.rows[0]] for one in parts])
    return whole if numbers == [*range(whole.shape[0])] else whole[numbers]


class Row(NamedTuple):
    """Tokens of a text, whose blocks are `block_ids`, from number `start` on.

    level: 0, or the number of a draft. part: the number of the part of the step that it is of. is_wanted: whether the
    logits of what comes after it are.
    """

    block_ids: list[int]
    start: int
    token_ids: list[int]
    level: int
    part: int
    is_wanted: bool


LEVEL = Row._fields.index("level")
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

    def run(self, step: Step, drafts: Mapping[Request, Sequence[int]] = MappingProxyType({})) -> list[Outcome]:
        """For each part of a step that reaches the end of its text the logits of the token that follows it, and of
        those that follow each of its drafts; or the error that it ended in.

        Where a pass of several requests fails, each of them is tried alone: nobody fails for another. For callers in
        inference mode.
        """
        for copied in step.copies:
            with self.together("copy", *copied):
                self.pages.copy(*copied)
        found: dict[int, Outcome] = {}
        rows: dict[str | None, list[Row]] = {}
        for number, part in enumerate(step.scheduled):
            its = rows.setdefault(part.request.adapter, [])
            its.append(Row(part.request.block_ids, part.start, part.new_token_ids, 0, number, part.is_last))
            if drafts:
                its += _draft_rows(part, drafts.get(part.request, ()), number)
        for adapter, own in rows.items():
            own.sort(key=itemgetter(LEVEL))  # rows see what those of lower levels write
            found |= self._tried(self.models[adapter], own)
        return [found[number] for number in range(len(step.scheduled))]

    def _tried(self, model: LanguageModel, rows: Sequence[Row]) -> dict[int, Outcome]:
        """The outcome of each part that rows are of, by its number."""
        try:
            with self.together("logits", rows):
                logits = self.logits(model, rows)
        except Exception as error:
            parts = dict.fromkeys(row.part for row in rows)
            if len(parts) == 1:
                return dict.fromkeys(parts, error)
            each = ([row for row in rows if row.part == part] for part in parts)
            return {part: outcome for own in each for part, outcome in self._tried(model, own).items()}
        own: dict[int, list[int]] = {row.part: [] for row in rows}
        for at, row in enumerate(row for row in rows if row.is_wanted):
            own[row.part].append(at)
        return {part: Logits(logits, mine) for part, mine in own.items()}

    def logits(self, model: LanguageModel, rows: Sequence[Row]) -> Tensor:
        """The fp32 logits (rows, V) of what comes after each row that wants them, in one pass; of the last if none."""
        config = model.config
        tables, starts, new, levels, _, wanted = zip(*rows, strict=True)
        context = Paged(
            self.pages,
            starts=starts,
            counts=[*map(len, new)],
            tables=tables,
            scale=config.softmax_scale,
            window=config.sliding_window,
            backend=config.attn_implementation,
            levels=levels,
            wanted=wanted,
            run=self._run,
        )
        token_ids, plan = [*chain.from_iterable(new)], stand_in_of(cast("nn.Module", model))
        if plan is not None and (logits := plan.read_rows(token_ids, context)) is not None:
            return logits
        # From NumPy, as torch reads lists of numbers several times more slowly.
        given = torch.from_numpy(np.array([token_ids])).to(context.device)
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


def _draft_rows(part: Scheduled, drafts: Sequence[int], number: int) -> list[Row]:
    """Each of the drafts after a part, which has this number, as a row."""
    blocks, end = part.request.block_ids, part.start + part.num_tokens
    return [Row(blocks, end + n, [token], n + 1, number, True) for n, token in enumerate(drafts)]
