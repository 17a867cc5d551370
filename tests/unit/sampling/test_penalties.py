"""Penalties by their definitions in plain Python, and rows that depend on nothing but themselves."""

from collections import Counter
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from llamita.errors import UsageError
from llamita.sampling import penalties, token_masks
from llamita.sampling.dry import breakers_of, penalise_continuation
from llamita.sampling.history import NO_TOKEN, History
from llamita.tokenizer.load import load_tokenizer


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(5, 97) * 3


def texts(length: int, *, different: int = 5, rows: int = 5, seed: int = 0) -> Tensor:
    return torch.randint(0, different, (rows, length), generator=torch.Generator().manual_seed(seed))


def test_r8_presence_and_frequency_are_openais(logits: Tensor) -> None:
    continuation = texts(12)
    continuation[1, :4] = NO_TOKEN
    presence, frequency = [0.5, 0.0, -1.0, 2.0, 0.0], [0.1, 0.7, 0.0, -0.2, 0.0]
    result = penalties.penalise_written(logits, continuation, presence=presence, frequency=frequency)
    for row in range(5):
        counts = Counter(continuation[row].tolist())
        for token in range(97):
            c = counts[token]
            expected = logits[row, token].item() - c * frequency[row] - (c > 0) * presence[row]
            assert result[row, token].item() == pytest.approx(expected, abs=1e-5)
    assert torch.equal(result[4], logits[4])


def test_repetition_penalty_of_a_row_that_is_off(logits: Tensor) -> None:
    result = penalties.penalise_repetition(logits, texts(9), [1.0, 1.5, 1.0, 0.5, 2.0])
    assert torch.equal(result[[0, 2]], logits[[0, 2]])
    assert (result != logits).any(-1).tolist() == [False, True, False, True, True]


def test_logit_bias_is_added_once(logits: Tensor) -> None:
    result = penalties.add_bias(logits, torch.tensor([4, 90]), torch.tensor([-100.0, 0.5]))
    expected = logits.clone()
    expected[:, 4] -= 100
    expected[:, 90] += 0.5
    assert torch.equal(result, expected)


def test_exponential_decay_survives_any_length(logits: Tensor) -> None:
    ends = torch.tensor([3])
    result = penalties.urge_end(logits, ends, excess=[0, 1, 10**6, -5, 2], factor=1.5)
    assert torch.equal(result[[0, 3]], logits[[0, 3]])
    assert result[2, 3] > 1e37
    assert result.softmax(-1)[2, 3] == 1
    assert result[1, 3].item() == pytest.approx((logits[1, 3] + 0.5 * logits[1, 3].abs()).item())


def test_wrong_sequences_are_refused(logits: Tensor) -> None:
    with pytest.raises(UsageError, match="vocabulary has 97"):
        penalties.SequenceBias({(97,): 1.0})(logits, texts(3))
    for wrong in ({(): 1.0}, {(-1,): 1.0}, {("a",): 1.0}):
        with pytest.raises(UsageError, match="no sequence of tokens"):
            penalties.SequenceBias(wrong)


def test_prefix_function_must_allow_something(logits: Tensor) -> None:
    with pytest.raises(UsageError, match="prompt 1"):
        token_masks.allow(logits, texts(3), lambda prompt, ids: [5] if prompt != 1 else [])


def dry_of_one_row(
    row: list[float],
    text: Sequence[int],
    *,
    multiplier: float,
    base: float,
    allowed_length: int,
    length: int = 0,
    breakers: Sequence[Sequence[int]] = (),
) -> list[float]:
    """DRY from its definition: every token after every earlier place, by the longest common ending."""
    text = list(text)[-length:] if length else list(text)
    limit = len(text)
    for start in range(len(text) - 1, -1, -1):
        found = [len(b) for b in breakers if text[start : start + len(b)] == list(b)]
        if found:
            limit = len(text) - start - max(found)
            break
    result = list(row)
    lengths: dict[int, int] = {}
    for place in range(len(text) - 1):
        same = 0
        while same <= place and text[place - same] == text[len(text) - 1 - same]:
            same += 1
        token = text[place + 1]
        lengths[token] = max(lengths.get(token, 0), min(same, limit))
    for token, same in lengths.items():
        if same >= allowed_length and [token] not in [list(b) for b in breakers]:
            result[token] -= multiplier * base ** (same - allowed_length)
    return result


@pytest.mark.parametrize("breakers", [(), [[3]], [[3], [1, 2], [3, 1], [1, 2, 2]]], ids=str)
@pytest.mark.parametrize("allowed", [0, 1, 2, 4])
def test_dry_is_its_definition(breakers: list[list[int]], allowed: int, logits: Tensor) -> None:
    for seed in range(6):
        for size in (1, 2, 7, 30):
            text = texts(size, different=2 + seed, seed=seed)
            if size == 30:
                text[0, 15:] = text[0, :15]  # a long repetition
            settings = {"multiplier": 0.8, "base": 1.75, "allowed_length": allowed, "length": 11 * (seed % 2)}
            result = penalise_continuation(logits, text, **settings, breakers=breakers)
            for row in range(5):
                expected = dry_of_one_row(logits[row].tolist(), text[row].tolist(), **settings, breakers=breakers)
                assert torch.allclose(result[row], torch.tensor(expected), rtol=1e-5, atol=1e-4)


def test_dry_differs_by_row_and_ignores_padding(logits: Tensor) -> None:
    text = texts(24, different=3)
    padded = text.clone()
    padded[2, :9] = NO_TOKEN
    settings = {
        "multiplier": [0.0, 0.8, 1.0, 0.5, 2.0], "base": [1.75, 1.2, 2.0, 1.0, 1.5],
        "allowed_length": [2, 1, 2, 3, 4], "length": [0, 8, 0, 5, 1],
    }  # fmt: skip
    result = penalise_continuation(logits, padded, **settings)
    assert torch.equal(result[0], logits[0])
    for row in range(5):
        own = {name: values[row] for name, values in settings.items()}
        own_text = text[row, 9:] if row == 2 else text[row]
        assert torch.equal(result[row : row + 1], penalise_continuation(logits[[row]], own_text[None], **own))
        expected = dry_of_one_row(logits[row].tolist(), own_text.tolist(), **own)
        assert torch.allclose(result[row], torch.tensor(expected), rtol=1e-5, atol=1e-4)


def test_dry_stays_finite_in_endless_repetition(logits: Tensor) -> None:
    text, bases = torch.full((5, 900), 7), [1.75, 1.75, 1.2, 1.75, 1.75]
    result = penalise_continuation(logits, text, multiplier=1.0, base=bases, allowed_length=2)
    assert result[:, 7].max() < -1e37
    assert result.isfinite().all()


def test_breakers_are_found_in_the_vocabulary(small_path: object) -> None:
    tokenizer = load_tokenizer(small_path)  # type: ignore[arg-type]
    found = breakers_of(["\n", "ab"], tokenizer)
    for string in ("\n", "x\n"):
        assert (tokenizer.encode(string, add_special_tokens=False)[-1],) in found
    a, b = tokenizer.encode("a", add_special_tokens=False), tokenizer.encode("b", add_special_tokens=False)
    assert (*a[-1:], *b) in found or any(len(ids) == 1 and "ab" in tokenizer.decode(list(ids)) for ids in found)


STAGES: list[Callable[[Tensor, History], Tensor]] = [
    lambda logits, h: penalties.penalise_repetition(logits, h.tokens, 1.3),
    lambda logits, h: penalties.favour_prompt(logits, h.prompt, 1.3),
    lambda logits, h: penalties.penalise_written(logits, h.continuation, presence=0.3, frequency=0.2),
    lambda logits, h: penalties.ban_repeats(logits, h.tokens, h.tokens, 1),
    lambda logits, h: penalties.ban_repeats(logits, h.tokens, h.tokens, 2),
    lambda logits, h: penalties.ban_repeats(logits, h.tokens, h.prompt, 3),
    lambda logits, h: penalties.SequenceBias({(0, 0, 1): 2.0, (1, 2): 3.0})(logits, h.tokens),
]


@pytest.mark.parametrize("stage", range(len(STAGES)))
def test_a_padded_row_is_as_it_is_alone(stage: int, logits: Tensor) -> None:
    prompts = texts(6, different=3)
    mask = torch.ones_like(prompts)
    for row in range(5):
        mask[row, :row] = 0
    batch = History.begin(prompts * mask, mask)
    alone = [History.begin(prompts[[row], row:]) for row in range(5)]
    for step in texts(4, different=3, seed=9).T:
        batch = batch.append(step)
        alone = [history.append(step[[row]]) for row, history in enumerate(alone)]
        single = [STAGES[stage](logits[[row]], history) for row, history in enumerate(alone)]
        assert torch.equal(STAGES[stage](logits, batch), torch.cat(single))


@pytest.mark.parametrize("stage", range(len(STAGES)))
def test_ragged_rows_are_as_they_are_alone(stage: int, logits: Tensor) -> None:
    """Rows of different written length end in the same column, as a speculative step leaves them."""
    text = texts(10, different=3)
    written = [0, 1, 2, 3, 4]
    first = torch.tensor([4 - count for count in written])
    batch = History(text.clone(), 6, first, written)
    assert batch.lengths == [6, 7, 8, 9, 10]
    single = [STAGES[stage](logits[[r]], History(text[[r], 4 - r :], 6)) for r in range(5)]
    assert torch.equal(STAGES[stage](logits, batch), torch.cat(single))
    assert torch.equal(
        STAGES[stage](logits[[3, 3, 0]], batch.select([3, 3, 0])), torch.cat([single[i] for i in (3, 3, 0)])
    )


def test_history_of_an_embedded_prompt_is_what_was_written() -> None:
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    history = History.begin(torch.empty(2, 0, dtype=torch.long), mask)
    assert History.begin(torch.tensor([[7, 8, 9], [7, 8, 9]]), mask).tokens.tolist() == [[NO_TOKEN, 8, 9], [7, 8, 9]]
    assert History.begin(torch.tensor([[7, 8], [7, 8]]), mask).first is None
    assert history.append(torch.tensor([1, 2])).continuation.tolist() == [[1], [2]]
    assert history.append(torch.tensor([1, 2])).lengths == [1, 1]
    logits = torch.randn(2, 9)
    assert torch.equal(penalties.penalise_repetition(logits, history.tokens, 1.5), logits)
    assert torch.equal(penalties.ban_repeats(logits, history.tokens, history.prompt, 2), logits)
