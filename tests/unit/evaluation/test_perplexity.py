"""Perplexity: windows that predict every token once, and transformers' own number."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llamita.bridge import transformers as peers
from llamita.checkpoint.load import load_pretrained
from llamita.errors import UsageError
from llamita.evaluation.perplexity import TextScore, score_text, windows

TEXT = "Mia had a red kite. She went to the hill with her friend.\fA llama ate 12 leaves, and then it slept."


@given(st.integers(0, 40), st.integers(1, 12), st.data())
def test_every_token_is_predicted_once_after_those_before_it(count: int, length: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, length))
    ids = list(range(count))
    predicted: list[int] = []
    for window in windows(ids, first=-1, length=length, stride=stride):
        assert 1 <= window.predicted < len(window.ids) <= length + 1
        assert list(window.ids) == list(range(window.ids[0], window.ids[-1] + 1))
        predicted += window.ids[-window.predicted :]
    assert predicted == ids


def test_the_windows_are_those_of_lm_eval() -> None:
    # The example of lm_eval.api.model.LM.loglikelihood_rolling.
    found = [(list(w.ids[:-1]), w.ids[-w.predicted :]) for w in windows(range(10), first=-1, length=4, stride=4)]
    assert found == [([-1, 0, 1, 2], [0, 1, 2, 3]), ([3, 4, 5, 6], [4, 5, 6, 7]), ([5, 6, 7, 8], [8, 9])]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 1e-6)])
@pytest.mark.parametrize("stride", [16, 5])
def test_perplexity_is_transformers(small_path: Path, dtype: str, tolerance: float, stride: int) -> None:
    loaded = load_pretrained(small_path, dtype=dtype, device="cpu")
    score = score_text(loaded.model, loaded.tokenizer, TEXT, length=16, stride=stride)
    peer = peers.load(small_path, dtype=getattr(torch, dtype), attn_implementation="sdpa")
    losses: list[torch.Tensor] = []
    for document in TEXT.split("\f"):
        ids = loaded.tokenizer.encode(document, add_special_tokens=False)
        for window in windows(ids, first=loaded.tokenizer.bos_token_id or 0, length=16, stride=stride):
            tokens = torch.tensor([window.ids])
            with torch.no_grad():
                logits = peer(tokens[:, :-1]).logits[0, -window.predicted :].double()
            losses.append(torch.nn.functional.cross_entropy(logits, tokens[0, -window.predicted :], reduction="none"))
    expected = torch.cat(losses)
    assert score.tokens == len(expected)
    assert score.perplexity == pytest.approx(expected.mean().exp().item(), rel=tolerance)
    assert score.bits_per_byte == pytest.approx(expected.sum().item() / math.log(2) / len(TEXT.replace("\f", "")))


def test_scores_add_up_and_a_smaller_stride_gives_more_context(cria_path: Path) -> None:
    assert TextScore(2.0, 3, 5) + TextScore(1.0, 2, 4) == TextScore(3.0, 5, 9)
    loaded = load_pretrained(cria_path, dtype="float32", device="cpu")
    text = (cria_path / "held_out.txt").read_text().split("\f")[0]  # a story
    cut, overlapping = (score_text(loaded.model, loaded.tokenizer, text, length=24, stride=s) for s in (24, 4))
    assert overlapping.tokens == cut.tokens
    assert overlapping.nats < cut.nats


def test_what_cannot_be_scored_is_refused(small_path: Path) -> None:
    loaded = load_pretrained(small_path, device="cpu")
    with pytest.raises(UsageError, match="the text is empty"):
        score_text(loaded.model, loaded.tokenizer, "\f\f", length=8)
    with pytest.raises(UsageError, match="the stride is 9: it must be from 1 to the length of a window, 8"):
        score_text(loaded.model, loaded.tokenizer, "a", length=8, stride=9)
