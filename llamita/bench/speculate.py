"""Guessing ahead beside plain writing, in turn, on one model: tokens per second, and how much was guessed right.

With the CPU's kernels, as `llamita.load` runs a model, and without them, as a model that was made by hand runs. A step
of the kernels costs more with each token that it reads, so guesses save less there.
"""

from time import perf_counter
from typing import Any

import torch

from llamita.bench.models import random
from llamita.bench.overhead import PROMPT
from llamita.bench.prompts import prompt
from llamita.bench.report import Row, rows_of
from llamita.bench.shapes import shape
from llamita.model.llama import LlamaForCausalLM
from llamita.plans.cpu.forward import fuse, unfuse, why_not

DRAFT_LAYERS = 2
QUIET = 0.003  # how much of what the later layers say is heard


def agreeing_pair(shape_name: str, dtype: str) -> tuple[LlamaForCausalLM, LlamaForCausalLM]:
    """A model of random weights and a draft of its first layers that guesses it well.

    Trained pairs agree by training; here all layers behind the draft's are made quiet, which costs as much time as
    any weights.
    """
    model = random(shape(shape_name).replace(eos_token_id=None), getattr(torch, dtype)).eval()
    for layer in list(model.model.layers)[DRAFT_LAYERS:]:
        for name, weight in layer.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.data.mul_(QUIET)
    return model, model.first_layers(DRAFT_LAYERS)


def measure(*, shape_name: str, dtype: str, batches: tuple[int, ...], tokens: int, repeats: int) -> list[Row]:
    """Rows for each batch size: plain, prompt lookup and draft model. `ratio` is plain over that way's speed.

    First with the kernels, where they know the model, then with torch's alone.
    """
    model, draft = agreeing_pair(shape_name, dtype)
    rows = []
    for has_kernels in (True, False) if why_not(model) is None else (False,):
        for one in (model, draft):
            (fuse if has_kernels else unfuse)(one)
        for batch in batches:
            name = f"tg{tokens} batch {batch}" + ("" if has_kernels else ", no kernels")
            speeds, rates = _speeds(model, draft, batch=batch, tokens=tokens, repeats=repeats)
            for row in rows_of(speeds, test=name, shape=shape_name, format=dtype, unit="tok/s"):
                way = f"{row.system}, {100 * rates[row.system]:.0f} % accepted" if row.system in rates else "plain"
                rows.append(Row(**{**vars(row), "system": way}))
    return rows


def _speeds(
    model: LlamaForCausalLM, draft: LlamaForCausalLM, *, batch: int, tokens: int, repeats: int
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Tokens per second of each way and turn, and the share of guesses that were accepted."""
    ways: dict[str, dict[str, Any]] = {
        "llamita": {},
        "prompt lookup": {"prompt_lookup_num_tokens": 8},
        "draft model": {"assistant_model": draft, "num_assistant_tokens": 6, "assistant_confidence_threshold": 0.0},
    }
    read = torch.tensor([prompt(model.config.vocab_size, PROMPT, row) for row in range(batch)])
    speeds: dict[str, list[float]] = {way: [] for way in ways}
    rates: dict[str, float] = {}
    for turn in range(repeats + 1):
        for way, flags in ways.items():
            start = perf_counter()
            out = model.generate(read, max_new_tokens=tokens, pad_token_id=0, return_dict_in_generate=True, **flags)
            if turn:
                speeds[way].append(batch * tokens / (perf_counter() - start))
            if out.acceptance is not None:
                rates[way] = out.acceptance.rate
    return speeds, rates
