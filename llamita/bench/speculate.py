"""Speculative decoding compared with plain decoding on one model: tokens per second and acceptance rate.

Measured with the CPU kernels, as `llamita.load` runs a model, and without. With the kernels each drafted token makes
a step dearer, so drafts save less.
"""

from dataclasses import replace
from time import perf_counter
from typing import Any

import torch

from llamita.bench.models import random
from llamita.bench.overhead import PROMPT
from llamita.bench.prompts import prompt
from llamita.bench.report import Row, rows_of
from llamita.bench.shapes import shape
from llamita.model.llama import LlamaForCausalLM
from llamita.plans.cpu.forward import fuse, unfuse, unsupported_reason

DRAFT_LAYERS = 2
DAMPING = 0.003  # factor of the output weights of the layers that the draft lacks


def agreeing_pair(shape_name: str, dtype: str) -> tuple[LlamaForCausalLM, LlamaForCausalLM]:
    """A model with random weights, and a draft model of its first layers that often agrees with it.

    Trained pairs agree by training. Here the output weights of all further layers are scaled down; their values do
    not change the time.
    """
    model = random(shape(shape_name).replace(eos_token_id=None), getattr(torch, dtype)).eval()
    for layer in list(model.model.layers)[DRAFT_LAYERS:]:
        for name, weight in layer.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.data.mul_(DAMPING)
    return model, model.first_layers(DRAFT_LAYERS)


def measure(*, shape_name: str, dtype: str, batches: tuple[int, ...], tokens: int, repeats: int) -> list[Row]:
    """Measure plain decoding, prompt lookup and a draft model for each batch size. `ratio`: plain speed over theirs.

    First with the CPU kernels, if they support the model, then without.
    """
    model, draft = agreeing_pair(shape_name, dtype)
    rows = []
    for has_kernels in (True, False) if unsupported_reason(model) is None else (False,):
        for one in (model, draft):
            (fuse if has_kernels else unfuse)(one)
        for batch in batches:
            name = f"tg{tokens} batch {batch}" + ("" if has_kernels else ", no kernels")
            speeds, rates = _speeds(model, draft, batch=batch, tokens=tokens, repeats=repeats)
            for row in rows_of(speeds, test=name, shape=shape_name, format=dtype, unit="tok/s"):
                label = f"{row.system}, {100 * rates[row.system]:.0f} % accepted" if row.system in rates else "plain"
                rows.append(replace(row, system=label))
    return rows


def _speeds(
    model: LlamaForCausalLM, draft: LlamaForCausalLM, *, batch: int, tokens: int, repeats: int
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Tokens per second of each method and turn, and the acceptance rate of each method."""
    methods: dict[str, dict[str, Any]] = {
        "llamita": {},
        "prompt lookup": {"prompt_lookup_num_tokens": 8},
        "draft model": {"assistant_model": draft, "num_assistant_tokens": 6, "assistant_confidence_threshold": 0.0},
    }
    ids = torch.tensor([prompt(model.config.vocab_size, PROMPT, row) for row in range(batch)])
    speeds: dict[str, list[float]] = {method: [] for method in methods}
    rates: dict[str, float] = {}
    for turn in range(repeats + 1):
        for method, flags in methods.items():
            start = perf_counter()
            out = model.generate(ids, max_new_tokens=tokens, pad_token_id=0, return_dict_in_generate=True, **flags)
            if turn:
                speeds[method].append(batch * tokens / (perf_counter() - start))
            if out.acceptance is not None:
                rates[method] = out.acceptance.rate
    return speeds, rates
