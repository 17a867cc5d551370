"""A workload for servers: requests of mixed lengths, some of which begin alike, and the least time that it takes."""

import random
from collections.abc import Iterable
from dataclasses import dataclass

from llamita.bench.formats import Operations, cache_bytes, dtype_of, weights
from llamita.bench.shapes import EMBEDDED, shape
from llamita.config import LlamaConfig

COUNTS = (1, 4, 8, 16, 32)  # requests at once
ROUNDS = 2  # requests for each that runs at once, at least
LEAST = {EMBEDDED: 160}  # requests of a shape whose turns would be over within a tenth of a second
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
    def of(cls, at_once: int, shape_name: str, seed: int) -> "Workload":
        """Requests of mixed lengths, every other one with the same first tokens; the same for the same seed."""
        config, dice = shape(shape_name), random.Random(f"{at_once} {seed}")
        count = max(LEAST.get(shape_name, 2), ROUNDS * at_once)
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
class Need:
    """What texts need at least, however they are cut and batched.

    computed: tokens that pass the layers. asked: tokens whose logits are asked for. pairs: of a query and a key that it
    sees. read: keys, with their values, that come from the cache.
    """

    computed: int
    asked: int
    pairs: int
    read: int

    @classmethod
    def of(cls, texts: Iterable[tuple[int, int, int]]) -> "Need":
        """Of each text the tokens of its prompt, those of them that were cached, and those written after it.

        The last token that is written passes no layer. A prompt's new tokens see each other without the cache, which is
        read for those before them; then each written token reads all before it.
        """
        computed = asked = pairs = read = 0
        for prompt, cached, written in texts:
            end = prompt + written - 1
            computed, asked = computed + end - cached, asked + written
            pairs += _sum_to(end) - _sum_to(cached)
            read += cached + _sum_to(end - 1) - _sum_to(prompt - 1)
        return cls(computed, asked, pairs, read)


def _sum_to(last: int) -> int:
    return last * (last + 1) // 2


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The least time that the machine takes for what texts need: the longer of two times.

    Memory: the bytes of all matrices once a step, `at_once` tokens each, and those of each cached token that is read.
    Products: of the layers for each token, of the head for those whose logits are asked for, at the rate of the fastest
    products; of attention at that of products in the cache's dtype. weights, cached: bytes of all matrices, and of a
    token in the cache. Nothing else counts: norms, rounding, softmax, sampling.
    """

    weights: float
    cached: float
    operations: Operations

    @classmethod
    def of(cls, config: LlamaConfig, format: str) -> "Cost":
        """The cost of a model in a format."""
        cached = cache_bytes(config, 1) * dtype_of(format).itemsize / 2
        return cls(weights=weights(config, format).read, cached=cached, operations=Operations.of(config))

    def seconds(self, need: Need, at_once: int, *, memory: float, rate: float, attention_rate: float) -> float:
        """The least time, with these bytes and operations a second."""
        each, steps = self.operations, need.asked / at_once
        products = (
            need.computed * each.layers + need.asked * each.logits
        ) / rate + need.pairs * each.pair / attention_rate
        return max((steps * self.weights + need.read * self.cached) / memory, products)
