"""Greedy decoding for the sessions of libraries that are called once per pass."""

from abc import ABC, abstractmethod
from time import perf_counter


class GreedySession(ABC):
    """A session that processes tokens, and then gives the most probable next one."""

    @abstractmethod
    def clear(self) -> None:
        """Empty the cache."""

    @abstractmethod
    def append(self, tokens: list[int]) -> None:
        """Process more tokens after those in the cache."""

    @abstractmethod
    def greedy_token(self) -> int:
        """The token with the largest logit of the last pass."""

    def prefill(self, prompt: list[int]) -> None:
        """Compute the logits of the next token after a prompt, from an empty cache."""
        self.clear()
        self.append(prompt)

    def decode_seconds(self, prompt: list[int], tokens: int) -> float:
        """Process a prompt and generate one token, then time the next `tokens` tokens: seconds."""
        self.prefill(prompt)
        token = self.greedy_token()
        start = perf_counter()
        for _ in range(tokens):
            self.append([token])
            token = self.greedy_token()
        return perf_counter() - start
