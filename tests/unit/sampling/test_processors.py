"""The chain does what is asked for, in the stated order, to each row by its own settings, and nothing for nothing."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from llamita.errors import UsageError
from llamita.sampling.history import History
from llamita.sampling.mirostat import surprise
from llamita.sampling.params import NUMBERS, RANGES, TABLES, SamplingParams, merge
from llamita.sampling.per_row import EachRow
from llamita.sampling.processors import PROCESSORS
from llamita.sampling.sampler import LogitsProcessorList, draw

ROWS, V, END = 4, 31, 5

# A setting for each stage, in another order than the chain's.
ALL = {
    "renormalize_logits": True, "watermarking_config": {"bias": 1.0}, "mirostat": 2, "xtc_probability": 1.0,
    "eta_cutoff": 0.01, "epsilon_cutoff": 0.01, "typical_p": 0.9, "min_p": 0.05, "top_p": 0.9, "top_k": 20,
    "top_h": 0.9, "temperature": 0.8, "logits_processor": [lambda ids, scores: scores * 1.5],
    "begin_suppress_tokens": [9], "suppress_tokens": [8], "exponential_decay_length_penalty": (1, 1.2),
    "remove_invalid_values": True, "forced_eos_token_id": END, "forced_bos_token_id": 1,
    "prefix_allowed_tokens_fn": lambda row, ids: list(range(V)), "min_new_tokens": 2, "min_length": 3,
    "bad_words_ids": [[7]], "encoder_no_repeat_ngram_size": 3, "no_repeat_ngram_size": 3, "dry_multiplier": 0.8,
    "frequency_penalty": 0.2, "repetition_penalty": 1.2, "encoder_repetition_penalty": 1.1, "logit_bias": {3: 1.0},
    "sequence_bias": {(4, 6): 2.0},
}  # fmt: skip
NEEDED = {"do_sample": True, "eos_token_id": END, "max_length": 30}


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(ROWS, V) * 3


@pytest.fixture
def history() -> History:
    prompt = torch.randint(0, 10, (ROWS, 5), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(prompt)
    mask[1, :2] = 0
    text = History.begin(prompt, mask)
    for step in torch.randint(0, 10, (4, ROWS), generator=torch.Generator().manual_seed(3)):
        text = text.append(step)
    return text


def test_nothing_asked_for_is_nothing_done(logits: Tensor, history: History) -> None:
    for neutral in (
        SamplingParams(),
        SamplingParams(do_sample=True, eos_token_id=[END], max_length=9, mirostat=[0] * ROWS),
    ):
        chain = LogitsProcessorList(neutral, rows=ROWS)
        assert not chain
        assert chain.names == ()
        assert not chain.is_adaptive
        assert chain(logits, history) is logits
    chain.observe(logits, logits.argmax(-1))
    # Sampling's flags do nothing in a greedy run.
    assert not LogitsProcessorList(
        SamplingParams(temperature=0.5, top_p=0.3, xtc_probability=1.0, mirostat=2), rows=ROWS
    )


def test_all_stages_in_the_stated_order(logits: Tensor, history: History) -> None:
    chain = LogitsProcessorList(SamplingParams(**NEEDED, **ALL), rows=ROWS)
    assert chain.names == tuple(stage.name for stage in PROCESSORS)
    assert len(set(chain.names)) == len(PROCESSORS) == 31
    assert chain.names[0] == "sequence_bias"
    assert chain.names[-2:] == ("watermarking_config", "renormalize_logits")
    result = chain(logits, history)
    assert torch.allclose(result.exp().sum(-1), torch.ones(ROWS), rtol=1e-5)


@pytest.mark.parametrize("name", [name for name in ALL if name in (*NUMBERS, *TABLES)])
def test_rows_that_are_off_come_back_bit_for_bit(name: str, history: History) -> None:
    """In the first row -inf, -0.0 and a subnormal show any arithmetic; the others have the setting."""
    logits = torch.randn(ROWS, V)
    logits[0, :4] = torch.tensor([-math.inf, -0.0, 1e-42, -1e30])
    off = getattr(SamplingParams(), name)
    kind = list if name in NUMBERS else EachRow
    chain = LogitsProcessorList(SamplingParams(**NEEDED, **{name: kind([off, ALL[name], off, ALL[name]])}), rows=ROWS)
    result = chain(logits, history)
    assert torch.equal(result[[0, 2]], logits[[0, 2]])
    assert torch.equal(torch.signbit(result[0]), torch.signbit(logits[0]))


def test_rows_with_settings_of_their_own_are_as_they_are_alone(logits: Tensor, history: History) -> None:
    """A setting each: every row of a batch is what it is in a batch of one."""
    rows = [
        SamplingParams(do_sample=True, temperature=0.7, top_k=9, logit_bias={2: 3.0}, eos_token_id=END, min_length=40),
        SamplingParams(do_sample=True, top_p=0.6, bad_words_ids=[[1], [2, 3]], eos_token_id=[END, 6], min_new_tokens=9),
        SamplingParams(repetition_penalty=1.5, presence_penalty=0.5, renormalize_logits=True),
        SamplingParams(do_sample=True, dry_multiplier=0.8, dry_sequence_breakers=[(4,)], xtc_probability=1.0,
                     xtc_threshold=0.05, watermarking_config={"bias": 0.5}),
    ]  # fmt: skip
    together = LogitsProcessorList(rows, rows=ROWS)(logits, history)
    for row, own in enumerate(rows):
        alone = LogitsProcessorList(own, rows=1)(logits[[row]], history.select([row]))
        assert torch.equal(together[[row]], alone)
    assert merge([rows[0], rows[2]]).temperature == [0.7, 0.0]  # a row that does not sample


def test_beams_repeat_the_settings_of_their_prompt(history: History) -> None:
    own = SamplingParams(
        do_sample=True, temperature=[0.5, 2.0], logit_bias=EachRow(({1: 1.0}, None)), top_k=torch.tensor([3, 9])
    )
    wide = own.select([0, 0, 1, 1])
    assert wide.temperature == [0.5, 0.5, 2.0, 2.0]
    assert wide.logit_bias == ({1: 1.0}, {1: 1.0}, None, None)
    logits = torch.randn(2, V).repeat_interleave(2, 0)
    result = LogitsProcessorList(wide, rows=4)(logits, history)
    assert torch.equal(result[0], result[1])
    assert torch.equal(result[2], result[3])


def test_seeded_rows_draw_xtc_from_their_own_generators(logits: Tensor, history: History) -> None:
    own = SamplingParams(do_sample=True, xtc_probability=[0.5, 0.5, 0.0, 0.5], xtc_threshold=0.01)

    def run(rows: list[int]) -> Tensor:
        seeded = [torch.Generator().manual_seed(row) for row in rows]
        chain = LogitsProcessorList(own.select(rows), rows=len(rows), generators=seeded)
        return torch.stack([chain(logits[rows], history.select(rows)) for _ in range(8)], dim=1)

    assert torch.equal(run([0, 1, 2, 3]), torch.cat([run([row]) for row in range(ROWS)]))


def test_xtc_protects_end_tokens(history: History) -> None:
    logits = torch.zeros(ROWS, V)
    logits[:, END] = 9.0
    logits[:, 8] = 8.9
    settings = {"do_sample": True, "xtc_probability": 1.0}
    assert torch.equal(
        LogitsProcessorList(SamplingParams(**settings, eos_token_id=END), rows=ROWS)(logits, history), logits
    )
    assert torch.equal(
        LogitsProcessorList(SamplingParams(**settings, xtc_protected=[END]), rows=ROWS)(logits, history), logits
    )
    assert LogitsProcessorList(SamplingParams(**settings), rows=ROWS)(logits, history)[:, END].isinf().all()


def test_mirostat_is_told_of_the_draw(history: History) -> None:
    logits = (-torch.arange(1, 400).float().log()).repeat(ROWS, 1)
    chain = LogitsProcessorList(
        SamplingParams(do_sample=True, mirostat=[2, 2, 0, 2], mirostat_tau=[1.5, 3.0, 5.0, 4.0]), rows=ROWS
    )
    assert chain.is_adaptive
    total = torch.zeros(ROWS)
    for _ in range(200):
        filtered = chain(logits, history)
        tokens = draw(filtered)
        chain.observe(filtered, tokens)
        total += surprise(filtered, tokens)
    for row, target in ((0, 1.5), (1, 3.0), (3, 4.0)):
        assert total[row].item() / 200 == pytest.approx(target, abs=0.5)


def test_ids_beyond_the_vocabulary_are_no_tokens(logits: Tensor, history: History) -> None:
    own = {
        "eos_token_id": [V + 9],
        "min_length": 99,
        "suppress_tokens": [V],
        "exponential_decay_length_penalty": (0, 2.0),
    }
    assert torch.equal(LogitsProcessorList(SamplingParams(**own), rows=ROWS)(logits, history), logits)
    assert LogitsProcessorList(SamplingParams(**own, do_sample=True, xtc_probability=1.0), rows=ROWS)(
        logits, history
    ).shape == (
        ROWS,
        V,
    )


def test_options_hand_their_fields_over() -> None:
    flags = SimpleNamespace(do_sample=True, temperature=0.5, top_k=None, min_new_tokens=None, seed=1, use_cache=True)
    assert SamplingParams.of(flags) == SamplingParams(do_sample=True, temperature=0.5)


@pytest.mark.parametrize("name", RANGES)
@pytest.mark.parametrize("value", [math.nan, math.inf, "high", True, [0.5, "low"]], ids=str)
def test_wrong_numbers_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=name):
        SamplingParams(**{name: value})


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": -1.0}, {"top_p": 1.5}, {"min_p": -0.1}, {"repetition_penalty": 0.0}, {"top_k": -1},
     {"dry_base": 0.5}, {"top_k": [1, 2]}, {"top_p": torch.tensor([0.5])}, {"mirostat": 1},
     {"logit_bias": EachRow(({}, {}))}, {"top_k": 2.5}],
    ids=str,
)  # fmt: skip
def test_wrong_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        LogitsProcessorList(SamplingParams(**wrong), rows=3)


def test_a_distribution_for_each_row_is_needed() -> None:
    with pytest.raises(UsageError, match="params lists 2"):
        LogitsProcessorList([SamplingParams(), SamplingParams()], rows=3)


@pytest.mark.gpu
def test_every_stage_runs_where_the_logits_are(logits: Tensor, history: History) -> None:
    for name, value in ALL.items():
        if name in ("watermarking_config", "prefix_allowed_tokens_fn"):  # lists of another generator; ids of the host
            continue
        settings = SamplingParams(**NEEDED, **{name: value})
        there = History(history.input_ids.cuda(), history.prompt_length, history.first.cuda())
        result = LogitsProcessorList(settings, rows=ROWS, device="cuda")(logits.cuda(), there).cpu()
        assert torch.allclose(result, LogitsProcessorList(settings, rows=ROWS)(logits, history), rtol=1e-5), name


def test_rows_cannot_differ_in_what_a_batch_has_once() -> None:
    with pytest.raises(UsageError, match="num_beams differs"):
        merge([SamplingParams(num_beams=2), SamplingParams()])
