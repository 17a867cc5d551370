"""Constraints for beams and drafts: the state is found from the text itself, as texts branch and are cropped."""

from torch import Tensor

from llamita.sampling.history import NO_TOKEN, History, LogitsProcessor
from llamita.structured.grammar import Constraints, Rule

REMEMBERED = 64  # states per constraint; older ones are dropped, and computed again when needed


class StatelessConstraint:
    """A logits processor that masks what the constraint of each text forbids, for any texts in any order.

    So beams may be reordered and drafts rejected. Each of the B constraints holds for `rows / B` neighbouring texts,
    its beams. then: a logits processor that follows.
    """

    def __init__(self, constraints: Constraints, *, then: LogitsProcessor | None = None) -> None:
        self._then = then
        self._known: list[dict[tuple[int, ...], Rule]] = [
            {} if start is None else {(): start.fork()} for start in constraints.rows
        ]

    def __call__(self, logits: Tensor, history: History) -> Tensor:
        """Logits (R, V) with minus infinity for ids that a text may not go on with."""
        texts = history.continuation.tolist()
        share = len(texts) // len(self._known)
        states = [
            self._state(self._known[row // share], tuple(i for i in text if i != NO_TOKEN))
            for row, text in enumerate(texts)
        ]
        masked = Constraints(states)(logits)
        return masked if self._then is None else self._then(masked, history)

    def _state(self, known: dict[tuple[int, ...], Rule], text: tuple[int, ...]) -> Rule | None:
        """The constraint state after `text`, resumed from the longest cached prefix."""
        if not known or text in known:
            return known.get(text)
        length = next(length for length in range(len(text), -1, -1) if text[:length] in known)
        state = known[text[:length]].fork()
        for token_id in text[length:]:
            state.accept(token_id)
        known[text] = state
        if len(known) > REMEMBERED:
            del known[next(old for old in known if old)]  # never the start
        return state
