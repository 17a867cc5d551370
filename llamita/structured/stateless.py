"""Rules for texts that branch and are taken back: found again from the text itself."""

from torch import Tensor

from llamita.sampling.history import NO_TOKEN, History, LogitsProcessor
from llamita.structured.grammar import Constraints, Rule

REMEMBERED = 64  # states a text; beyond these the oldest are forgotten, and found again from an earlier one


class StatelessConstraint:
    """A process that leaves each text what its rule allows next, whatever texts it was asked about before.

    So beams may change places and guesses may fail. Each of the B rules is for as many texts, one after another,
    as there are rows for it: `rows / B` beams. then: what happens to the logits afterwards.
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
        """The rule behind a text: that behind its longest known beginning, gone on."""
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
