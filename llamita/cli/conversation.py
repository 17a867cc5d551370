"""A conversation with a model: its turns, what of them the model still reads, and the cache between them."""

from collections.abc import Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llamita.cli import terminal
from llamita.errors import UsageError

if TYPE_CHECKING:
    from llamita.generation.completion import Completion
    from llamita.llm import LLM

Turn = dict[str, str]


class Conversation:
    """Turns of a user and a model. What was read stays in a cache, so that a turn costs only what it adds.

    options: of `LLM.generate`. seed: of the next answer; each later one takes the next number.
    """

    def __init__(self, llm: "LLM", *, options: Mapping[str, Any], seed: int, system: str | None = None) -> None:
        self.llm = llm
        self.options = dict(options)
        self.system = system
        self.seed = seed
        self.turns: list[Turn] = []
        self.is_cut = False  # whether the answer that was just written ended at its limit of tokens
        self._last: Completion | None = None  # of the last turn, where that was written here
        self._prefix = llm.new_prefix()

    @property
    def messages(self) -> list[Turn]:
        """What the model is shown: the system message and the turns."""
        return self._instructions() + self.turns

    @property
    def question(self) -> str:
        """What the user said last. Raises UsageError where nothing was."""
        return self.turns[self._index_of("user")]["content"]

    def reset(self) -> None:
        """Forget the turns."""
        self.turns, self._last = [], None

    def answer(self, text: str) -> Generator[str, None, None]:
        """The model's answer in pieces. It joins the turns however far it comes; without a word of it nothing does."""
        return self._write([*self.turns, {"role": "user", "content": text}])

    def retry(self) -> Generator[str, None, None]:
        """Another answer to what the user said last; the old one stays where no word of the new one comes."""
        return self._write(self.turns[: self._index_of("user") + 1])

    def edit(self, text: str) -> Generator[str, None, None]:
        """The answer, had the user said this instead of what was said last."""
        return self._write([*self.turns[: self._index_of("user")], {"role": "user", "content": text}])

    def undo(self) -> str:
        """Take back what the user said last, and the answer; returns the former."""
        question = self.question
        self.turns, self._last = self.turns[: self._index_of("user")], None
        return question

    def resume(self, messages: Sequence[Turn]) -> None:
        """Go on from these messages, the instructions first if there are any."""
        self.system = messages[0]["content"] if messages and messages[0]["role"] == "system" else None
        self.turns, self._last = list(messages[self.system is not None :]), None

    def last_answer(self) -> tuple[list[int], list[int]]:
        """The ids before the model's last answer, and its own. Raises UsageError where there is none.

        Those of an answer that was not written here are what the tokenizer makes of its text.
        """
        if self._last is not None:
            return self._last.prompt_token_ids, self._last.token_ids
        from llamita.tokenizer.chat import encode_chat

        end = len(self._instructions()) + self._index_of("assistant")
        before = encode_chat(self.llm.tokenizer, self.messages[:end])
        whole = encode_chat(self.llm.tokenizer, self.messages[: end + 1], continue_final_message=True)
        if whole[: len(before)] == before:
            return before, whole[len(before) :]
        return before, self.llm.tokenizer.encode(self.messages[end]["content"], add_special_tokens=False)

    def used(self) -> int:
        """How many tokens of the context the conversation takes."""
        if self._last is not None:
            return self._last.usage.total_tokens
        return self._length(is_asked=False) if self.messages else 0

    def _write(self, turns: list[Turn]) -> Generator[str, None, None]:
        """The answer to turns, which take the place of those there are once there is a word of it."""
        before, self.turns = (self.turns, self._last), turns
        completion, self.is_cut = None, False
        try:
            self._forget_what_does_not_fit()
            stream = self.llm.stream_chat(self.messages, prefix=self._prefix, seed=self.seed, **self.options)
            for piece in stream:
                completion = stream.completion
                yield piece
            completion = stream.completion
        finally:
            if completion is not None and completion.text:
                self._keep(completion)
            else:
                self.turns, self._last = before
        if self.turns is before[0]:  # neither an error nor Ctrl-C comes here
            terminal.note("(no answer: the model ended at once)")

    def _keep(self, completion: "Completion") -> None:
        self.seed += 1
        self.turns.append({"role": "assistant", "content": completion.text})
        self._last = completion
        self.is_cut = completion.finish_reason == "length"

    def _instructions(self) -> list[Turn]:
        return [] if self.system is None else [{"role": "system", "content": self.system}]

    def _index_of(self, role: str) -> int:
        """Where the last turn of a role is."""
        indices = [index for index, turn in enumerate(self.turns) if turn["role"] == role]
        if not indices:
            raise UsageError("nothing was said yet: say something first")
        return indices[-1]

    def _forget_what_does_not_fit(self) -> None:
        """Drop the oldest turns until a quarter of the context is free for the answer, and say so."""
        limit = self.llm.context_length * 3 // 4
        dropped = 0
        while len(self.turns) > 2 and self._length() > limit:
            self.turns = self.turns[2:]
            dropped += 1
        if dropped:
            what = "the oldest turn was" if dropped == 1 else f"the {dropped} oldest turns were"
            terminal.note(
                f"(the model reads at most {self.llm.context_length} tokens: {what} left out)", style="yellow"
            )

    def _length(self, *, is_asked: bool = True) -> int:
        from llamita.tokenizer.chat import encode_chat

        return len(encode_chat(self.llm.tokenizer, self.messages, add_generation_prompt=is_asked))
