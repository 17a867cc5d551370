"""A watermark in the choice of tokens, and its detector (Kirchenbauer et al., arXiv:2301.10226, arXiv:2306.04634).

The tokens before a position decide which part of the vocabulary is green there. Sampling prefers green tokens, and a
text with more of them than chance explains has the watermark. The green lists are transformers', made by the device's
random generator: detect on the same kind of device that wrote the text.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from llamita.checks import quoted
from llamita.errors import UsageError

TABLE = 1_000_003  # entries of the table that hashes tokens for "selfhash"
MOST = 1e15  # a larger bias makes no difference
CANDIDATES = 40  # "selfhash" tries this many of the most probable tokens


@dataclass(frozen=True, kw_only=True)
class WatermarkingConfig:
    """Settings of the watermark, by transformers' names and with its defaults.

    greenlist_ratio: the green share of the vocabulary. bias: added to green logits. seeding_scheme: what chooses the
    list; "lefthash" is the last token, "selfhash" the token itself and the `context_width` - 1 before it. Raises
    UsageError for an unknown scheme and impossible numbers.
    """

    greenlist_ratio: float = 0.25
    bias: float = 2.0
    hashing_key: int = 15485863
    seeding_scheme: str = "lefthash"
    context_width: int = 1

    def __post_init__(self) -> None:
        if self.seeding_scheme not in ("lefthash", "selfhash"):
            raise UsageError(f'seeding_scheme is {self.seeding_scheme!r}: give "lefthash" or "selfhash"')
        if not 0 < self.greenlist_ratio < 1:
            raise UsageError(f"greenlist_ratio is {self.greenlist_ratio!r}: give a share between 0 and 1")
        if self.context_width < 1:
            raise UsageError(f"context_width is {self.context_width!r}: give a count of tokens, at least 1")

    @classmethod
    def of(cls, value: Any) -> "WatermarkingConfig":
        """From a dictionary, or any object with these attributes: transformers' own config fits.

        Raises UsageError for another key.
        """
        if isinstance(value, cls):
            return value
        names = [item.name for item in fields(cls)]
        if isinstance(value, Mapping) and (unknown := [name for name in value if name not in names]):
            raise UsageError(f"watermarking_config has no {quoted(unknown[0])}: its fields are {', '.join(names)}")
        return cls(**(value if isinstance(value, Mapping) else {name: getattr(value, name) for name in names}))


class Watermark:
    """Adds the bias to the green logits of every row."""

    def __init__(self, config: WatermarkingConfig, device: torch.device | str = "cpu") -> None:
        self.config = config
        self.device = device
        self._generator = torch.Generator(device=device)

    def __call__(self, logits: Tensor, text: Tensor) -> Tensor:
        """Mark the logits (B, V) after a text (B, T); rows shorter than the context stay as they are."""
        marked = logits.clone()
        for row, ids in enumerate(text):
            context = ids[-self.config.context_width :]
            if len(context) == self.config.context_width and bool((context >= 0).all()):
                green = self._greens(context, logits[row])
                marked[row, green] = marked[row, green] + min(max(self.config.bias, -MOST), MOST)
        return marked

    def green(self, context: Tensor, vocabulary: int) -> Tensor:
        """The green tokens after a context of `context_width` tokens; with "selfhash" its last is the candidate."""
        # The remainder is transformers', one short of 64 bits.
        self._generator.manual_seed(self._seed(context) % (2**64 - 1))
        order = torch.randperm(vocabulary, generator=self._generator, device=self.device)
        return order[: int(vocabulary * self.config.greenlist_ratio)]

    def _greens(self, context: Tensor, logits: Tensor) -> Tensor:
        if self.config.seeding_scheme == "lefthash":
            return self.green(context, len(logits))
        candidates = logits.sort(descending=True).indices[:CANDIDATES]
        own = [bool((self.green(torch.cat((context[1:], one[None])), len(logits)) == one).any()) for one in candidates]
        return candidates[torch.tensor(own, device=logits.device)]

    def _seed(self, context: Tensor) -> int:
        last = context[-1]
        if self.config.seeding_scheme == "lefthash":
            return self.config.hashing_key * int(last)
        hashed = self._table[context % TABLE] + 1
        return int((self.config.hashing_key * hashed * (self._table[last % TABLE] + 1)).min())

    @cached_property
    def _table(self) -> Tensor:
        self._generator.manual_seed(self.config.hashing_key)
        return torch.randperm(TABLE, generator=self._generator, device=self.device)


@dataclass(frozen=True, eq=False)
class Detection:
    """The result of the detector: counts of scored and of green tokens, and how improbable these are; all (B,).

    z_score: standard deviations above the expected count. p_value: the probability of at least this count by chance.
    """

    num_tokens_scored: Tensor
    num_green_tokens: Tensor
    green_fraction: Tensor
    z_score: Tensor
    p_value: Tensor
    prediction: Tensor

    @property
    def confidence(self) -> Tensor:
        """One less the p-value."""
        return 1 - self.p_value


def detect(
    texts: Tensor,
    config: WatermarkingConfig,
    *,
    vocabulary: int,
    bos_token_id: int | None = None,
    ignore_repeated_ngrams: bool = False,
    z_threshold: float = 3.0,
) -> Detection:
    """Look for the watermark in texts (B, T), written without their prompts; padding is not known here.

    A beginning-of-text token, which must then stand in every row, is left out. ignore_repeated_ngrams counts equal
    stretches once. Raises UsageError for texts too short to score.
    """
    if bos_token_id is not None and bool((texts[:, 0] == bos_token_id).any()):
        if not bool((texts[:, 0] == bos_token_id).all()):
            raise UsageError("some texts begin with the bos token and some do not: encode them alike")
        texts = texts[:, 1:]
    if texts.shape[1] <= config.context_width:
        raise UsageError(
            f"a text of {texts.shape[1]} tokens cannot be scored: give at least {config.context_width + 1}"
        )
    watermark = Watermark(config, texts.device)
    counts = [_green_count(row, watermark, vocabulary, ignore_repeated_ngrams) for row in texts.tolist()]
    scored, green = torch.tensor(counts, dtype=torch.float64, device="cpu").unbind(-1)
    share = config.greenlist_ratio
    z_score = (green - share * scored) / (scored * share * (1 - share)).sqrt()
    p_value = 0.5 * torch.special.erfc(z_score / math.sqrt(2))
    return Detection(scored, green, green / scored, z_score, p_value, z_score > z_threshold)


def _green_count(ids: Sequence[int], watermark: Watermark, vocabulary: int, is_once: bool) -> tuple[int, int]:
    """How many tokens of a row are scored, and how many of them are green."""
    config = watermark.config
    is_self = config.seeding_scheme == "selfhash"
    length = config.context_width + (not is_self)
    stretches = Counter(tuple(ids[start : start + length]) for start in range(len(ids) - length + 1))
    green = 0
    for stretch, count in stretches.items():
        context = torch.tensor(stretch if is_self else stretch[:-1], device=watermark.device)
        is_green = bool((watermark.green(context, vocabulary) == stretch[-1]).any())
        green += is_green * (1 if is_once else count)
    return len(stretches) if is_once else stretches.total(), green
