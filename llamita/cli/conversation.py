"""A conversation with a model: its turns, what of them the model still reads, and the cache between them."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from llamita.cli import terminal

if TYPE_CHECKING:
    from llamita.llm import LLM, Completion


class Conversation:
    """Turns of a user and a model. What was read stays in a cache, so that a turn costs only what it adds.

    options: of `LLM.generate`. seed: of the first answer; each later one takes the next number.
    """

    def __init__(self, llm: "LLM", *, options: Mapping[str, Any], seed: int, system: str | None = None) -> None:
        self.llm = llm
        self.options = dict(options)
        self.system = system
        self.turns: list[dict[str, str]] = []
        self._seed = seed
        self._prefix = llm.new_prefix()

    @property
    def messages(self) -> list[dict[str, str]]:
        """What the model is shown: the system message and the turns."""
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return system + self.turns

    def reset(self) -> None:
        """Forget the turns."""
        self.turns.clear()

    def answer(self, text: str) -> Iterator[str]:
        """The model's answer in pieces. It joins the turns however far it comes; without a word of it nothing does."""
        self.turns.append({"role": "user", "content": text})
        completion = None
        try:
            self._forget_what_does_not_fit()
            stream = self.llm.stream_chat(self.messages, prefix=self._prefix, seed=self._seed, **self.options)
            completion = stream.completion
            for piece in stream:
                completion = stream.completion
                yield piece
            completion = stream.completion
        finally:
            self._keep(completion)

    def _keep(self, completion: "Completion | None") -> None:
        if completion is None or not completion.text:
            self.turns.pop()
            return
        self._seed += 1
        self.turns.append({"role": "assistant", "content": completion.text})
        if completion.finish_reason == "length":
            terminal.note(" (cut at the limit of tokens)")

    def _forget_what_does_not_fit(self) -> None:
        """Drop the oldest turns until a quarter of the context is free for the answer, and say so."""
        limit = self.llm.context_length * 3 // 4
        dropped = 0
        while len(self.turns) > 2 and self._length() > limit:
            del self.turns[:2]
            dropped += 1
        if dropped:
            what = "the oldest turn was" if dropped == 1 else f"the {dropped} oldest turns were"
            terminal.note(
                f"(the model reads at most {self.llm.context_length} tokens: {what} left out)", style="yellow"
            )

    def _length(self) -> int:
        from llamita.tokenizer.chat import encode_chat

        return len(encode_chat(self.llm.tokenizer, self.messages))
