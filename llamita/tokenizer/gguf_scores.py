"""SentencePiece's scores and BPE's merges: the same order of preference, said by token or by pair."""

from collections.abc import Mapping, Sequence

Pair = tuple[str, str]


def merges_of(scores: Mapping[str, float]) -> list[Pair]:
    """Every pair of tokens that makes a token, the highest score first; pairs of one token by their lengths."""
    pairs = [
        (score, len(token[:cut]), len(token[cut:]), token[:cut], token[cut:])
        for token, score in scores.items()
        for cut in range(1, len(token))
        if token[:cut] in scores and token[cut:] in scores
    ]
    pairs.sort(key=lambda pair: pair[:3], reverse=True)  # stable: equal scores stay in the vocabulary's order
    return [(left, right) for *_, left, right in pairs]


def scores_of(tokens: Sequence[str], merges: Sequence[Pair]) -> list[float]:
    """A score for each token: the earlier it is first merged, the higher; one that no merge makes comes last."""
    first: dict[str, int] = {}
    for rank, (left, right) in enumerate(merges):
        first.setdefault(left + right, rank)
    return [-float(first.get(token, len(merges))) for token in tokens]
