"""Log probabilities through the head in chunks, transition scores, and the records."""

import pytest
import torch
from torch import nn

from llamita.config import LlamaConfig
from llamita.errors import UsageError
from llamita.generation.logprobs import logprobs_of, logprobs_through, prompt_logprobs
from llamita.generation.outputs import (
    GenerateBeamDecoderOnlyOutput,
    GenerateDecoderOnlyOutput,
    ScoreRecorder,
    side_by_side,
)
from llamita.model.llama import LlamaForCausalLM


class Watched(nn.Linear):
    """A head that remembers the most rows it was given at once."""

    most = 0

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        self.most = max(self.most, input.shape[0])
        return super().forward(input)


@pytest.mark.parametrize("chunk", [1, 4, 15, 100])
def test_chunks_equal_the_whole(chunk: int) -> None:
    head, states, ids = Watched(8, 11, bias=False), torch.randn(3, 5, 8), torch.randint(0, 11, (3, 5))
    whole = logprobs_of(states @ head.weight.T, ids, top=4)
    parts = logprobs_through(states, head, ids, top=4, chunk=chunk)
    assert head.most <= chunk
    for one, other in zip(parts, whole, strict=True):
        torch.testing.assert_close(one, other)
    assert parts.top.shape == (3, 5, 4)


def test_logprobs_by_hand() -> None:
    found = logprobs_of(torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log(), torch.tensor([2]), top=9)
    assert found.chosen.exp().tolist() == pytest.approx([0.125])
    assert found.ranks.tolist() == [3]
    assert found.top[0, :2].tolist() == [0, 1]
    assert found.top_logprobs.exp()[0].tolist() == pytest.approx([0.5, 0.25, 0.125, 0.125])
    assert logprobs_of(torch.randn(2, 3, 7), torch.zeros(2, 3, dtype=torch.long)).top.shape == (2, 3, 0)
    with pytest.raises(UsageError, match="chunk is 0"):
        logprobs_through(torch.randn(1, 2, 3), nn.Identity(), torch.zeros(1, 2, dtype=torch.long), chunk=0)


def test_a_prompt_read_in_chunks(tiny_config: LlamaConfig) -> None:
    model, ids = LlamaForCausalLM(tiny_config).eval(), torch.randint(0, 97, (2, 9))
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    found = prompt_logprobs(model, ids, mask, top=2, chunk=5)
    alone = model(ids[1:, 3:]).logits[0, :-1].log_softmax(-1)
    torch.testing.assert_close(found.chosen[1, 3:], alone.gather(-1, ids[1, 4:, None])[:, 0])
    torch.testing.assert_close(found.top_logprobs[1, 3:], alone.topk(2).values)


def test_records() -> None:
    record = ScoreRecorder(scores=True)
    logits = torch.zeros(1, 2)
    record(logits, logits)
    logits += 1  # what is kept does not follow
    assert record.logits is None
    assert record.scores is not None and record.scores[0].tolist() == [[0.0, 0.0]]
    output = GenerateDecoderOnlyOutput(torch.ones(1, 1), scores=record.scores)
    assert output.keys() == ["sequences", "scores"]
    assert GenerateBeamDecoderOnlyOutput(torch.ones(1, 1)).to_tuple() == (torch.ones(1, 1),)


def test_side_by_side() -> None:
    assert side_by_side([[1, 2], [], [3]], fill=7).tolist() == [[1, 2], [7, 7], [3, 7]]
    assert side_by_side([[], []], fill=7).shape == (2, 0)
