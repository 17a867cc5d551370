"""How well logits predict a text: its negative log-likelihood, and the perplexity."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 512  # tokens whose logits are in fp64 at once


def nats(logits: Tensor, ids: Sequence[int]) -> float:
    """The negative log-likelihood of all ids but the first, in fp64, from the logits (T, V) after each of them."""
    targets = torch.tensor(ids[1:], device=logits.device)
    parts = zip(logits[:-1].split(CHUNK), targets.split(CHUNK), strict=True)
    return sum(F.cross_entropy(part.double(), own, reduction="sum").item() for part, own in parts)


def perplexity(nats: float, tokens: int) -> float:
    """The exponential of the mean loss per token. Comparable between models of the same tokenizer only."""
    return math.exp(nats / tokens)
