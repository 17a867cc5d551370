"""A workload for servers: requests of mixed lengths, some of which begin alike, and the least time that it takes."""

import random
from dataclasses import dataclass

from llamita.config import LlamaConfig

COUNTS = (1, 4, 8, 16, 32)  # requests at once
ROUNDS = 2  # requests for each that runs at once
PROMPTS, ANSWERS = (16, 192), (24, 96)  # tokens, least and most
SHARED = 64  # tokens that every other prompt begins with
SHORT = 8  # tokens
LONGEST = 512  # tokens of a prompt and its answer


@dataclass(frozen=True)
class Workload:
    """Requests: prompts and the tokens to write after each; `at_once` of them run together."""

    at_once: int
    prompts: list[list[int]]
    answers: list[int]

    @classmethod
    def of(cls, at_once: int, config: LlamaConfig, seed: int) -> "Workload":
        """Requests of mixed lengths, every other one with the same first tokens; the same for the same seed."""
        dice = random.Random(f"{at_once} {seed}")
        count = max(2, ROUNDS * at_once)
        texts = [dice.choices(range(config.vocab_size), k=dice.randint(*PROMPTS)) for _ in range(count)]
        shared = dice.choices(range(config.vocab_size), k=SHARED)
        prompts = [shared + text if number % 2 else text for number, text in enumerate(texts)]
        return cls(at_once, prompts, [dice.randint(*ANSWERS) for _ in range(count)])

    def beginning(self) -> "Workload":
        """The first requests, one for each that runs at once, with short answers: to begin with."""
        answers = [min(answer, SHORT) for answer in self.answers[: self.at_once]]
        return Workload(self.at_once, self.prompts[: self.at_once], answers)

    @property
    def written(self) -> int:
        """Tokens of all answers."""
        return sum(self.answers)


@dataclass(frozen=True)
class Cost:
    """What the weights of a model cost: bytes that a step reads, and operations of a token."""

    read: float
    operations: float

    def seconds(self, at_once: int, *, computed: int, written: int, memory: float, rate: float) -> float:
        """The least time for the tokens computed of prompts and written: each step reads the weights once."""
        return max(written / at_once * self.read / memory, (computed + written) * self.operations / rate)
