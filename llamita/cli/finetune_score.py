"""What a model is asked before and after fine-tuning: prompts that were held out of the data."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llamita.data.cases import Case

if TYPE_CHECKING:
    from llamita.llm import LLM
    from llamita.tokenizer.protocol import Tokenizer

MOST_CASES, MOST_TOKENS = 100, 64  # prompts that are asked, and tokens of an answer that is compared


@dataclass(frozen=True)
class Score:
    """How many answers were right of how many, and what was measured on held-out rows, by name."""

    right: int
    asked: int
    figures: dict[str, float]

    def __str__(self) -> str:
        answers = [f"{self.right} of {self.asked} held-out answers right"] if self.asked else []
        return ", ".join([*answers, *(f"{name} {value:.3f}" for name, value in self.figures.items())])


def askable(cases: Sequence[Case]) -> list[Case]:
    """The cases that can be asked: a prompt with one answer, which is short enough to be repeated exactly."""
    return [case for case in cases if case.has_one_answer and len(case.answer) <= MOST_TOKENS][:MOST_CASES]


def count_right(llm: "LLM", cases: Sequence[Case], tokenizer: "Tokenizer") -> int:
    """How many of the cases the model answers exactly, greedily; control tokens and blanks at the ends do not count."""
    most = max((len(case.answer) for case in cases), default=0)
    written = llm.generate([case.prompt for case in cases], max_tokens=most, temperature=0, seed=0)
    wanted = (text_of(case.answer, tokenizer) for case in cases)
    return sum(answer.text.strip() == text for answer, text in zip(written, wanted, strict=True))


def text_of(ids: Sequence[int], tokenizer: "Tokenizer") -> str:
    """The text of token ids without control tokens, and without blanks at its ends."""
    return tokenizer.decode([one for one in ids if one not in tokenizer.special_ids]).strip()
