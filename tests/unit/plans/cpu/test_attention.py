"""Rows of any lengths in one pass: each has the logits that it has alone, bit for bit, whatever pass came before."""

import random

import pytest
import torch

from llamita.cache.paged import PagedCache
from llamita.context.paged import Paged
from llamita.model.llama import LlamaForCausalLM
from llamita.model.plan import stand_in_of
from llamita.plans.cpu import fuse
from llamita.plans.cpu.watch import Watch
from llamita.quant.surgery import quantize
from tests.unit.plans.cpu.models import plain

BLOCK = 16
# Of each row, the tokens of the passes that read it; 0 where it has none in a pass.
PASSES = [[1, 30, 9, 70], [1, 1, 1, 1], [0, 2, 40, 8], [5, 1, 0, 33], [1, 0, 33, 1]]
FORMS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "q8_0": torch.bfloat16}


def model_of(form: str) -> LlamaForCausalLM:
    """A fused model."""
    model = plain(hidden_size=96, num_attention_heads=6, num_key_value_heads=2, head_dim=32, sliding_window=50)
    model = model.to(FORMS[form])
    if form == "q8_0":
        quantize(model, form)
    return fuse(model)


Rows = list[tuple[int, list[int], list[int]]]


def logits_of(model: LlamaForCausalLM, pages: PagedCache, rows: Rows, run: object | None = None) -> torch.Tensor:
    """The logits of what follows each row: of its start, its new tokens and its table."""
    starts, tokens, tables = zip(*rows, strict=True)
    counts, scale = [len(new) for new in tokens], model.config.softmax_scale
    window = model.config.sliding_window
    context = Paged(pages, starts=starts, counts=counts, tables=tables, scale=scale, window=window, run=run)
    ids = torch.tensor([[token for new in tokens for token in new]])
    return model(ids, context=context, logits_to_keep=context.last).logits[0]


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_rows_of_any_lengths_in_one_pass(form: str) -> None:
    model, dice = model_of(form), random.Random(3)
    config = model.config
    together, alone = (
        PagedCache(config, num_blocks=40, block_size=BLOCK, dtype=FORMS[form], device="cpu") for _ in "ab"
    )
    order = dice.sample(range(40), 40)
    tables, starts = [order[10 * row : 10 * row + 10] for row in range(4)], [0] * 4
    for counts in PASSES:
        rows = [
            (starts[row], dice.choices(range(config.vocab_size), k=count), tables[row])
            for row, count in enumerate(counts)
            if count
        ]
        found = logits_of(model, together, rows)
        assert torch.equal(found, torch.cat([logits_of(model, alone, [row]) for row in rows]))
        starts = [start + count for start, count in zip(starts, counts, strict=True)]
    for mine, its in zip(together.buffers, alone.buffers, strict=True):
        assert torch.equal(torch.stack(mine), torch.stack(its))


@pytest.mark.parametrize("form", ["bfloat16", "q8_0"])  # a quantized model has a hook of ours
@torch.no_grad()
def test_the_passes_of_a_run_look_once_for_changes_of_the_model(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, looks = model_of(form), list[bool]()
    pages = PagedCache(model.config, num_blocks=1, block_size=BLOCK, dtype=torch.bfloat16, device="cpu")
    has_changed = Watch.has_changed
    monkeypatch.setattr(Watch, "has_changed", lambda watch: (looks.append(has_changed(watch)), looks[-1])[1])
    before, counts = logits_of(model, pages, [(0, [5], [0])]), list[int]()
    run = object()
    for given in (run, run, run, object(), None, None):
        assert torch.equal(logits_of(model, pages, [(0, [5], [0])], given), before)
        counts.append(len(looks))
    assert counts == [1, 1, 1, 2, 3, 4]
    model.model.norm.weight = torch.nn.Parameter(-model.model.norm.weight)
    assert torch.equal(logits_of(model, pages, [(0, [5], [0])], object()), -before)
    assert looks == [False, False, False, False, True]


@torch.no_grad()
def test_rows_of_a_run_are_read_without_the_forward_after_its_first_pass() -> None:
    model = model_of("q8_0")
    plan, config = stand_in_of(model), model.config
    assert plan is not None
    pages, twin = (PagedCache(config, num_blocks=2, block_size=BLOCK, dtype=torch.bfloat16, device="cpu") for _ in "ab")

    def read(pages: PagedCache, run: object | None, start: int = 0) -> torch.Tensor | None:
        rows = {"starts": [start, 0], "counts": [2, 1], "tables": [[0], [1]]}
        context = Paged(pages, **rows, scale=config.softmax_scale, window=config.sliding_window, run=run)
        return plan.read_rows([5, 9, 7], context)

    run = object()
    assert read(pages, run) is None
    rows: Rows = [(0, [5, 9], [0]), (0, [7], [1])]
    first = logits_of(model, pages, rows, run)
    assert torch.equal(first, read(pages, run))
    assert read(twin, run) is read(pages, object()) is read(pages, None) is None
    later = read(pages, run, start=2)
    logits_of(model, twin, rows)
    assert torch.equal(later, logits_of(model, twin, [(2, [5, 9], [0]), (0, [7], [1])]))
    model.register_forward_hook(lambda *_: None)  # which wants to see every pass
    logits_of(model, pages, rows, run := object())
    assert read(pages, run) is None
