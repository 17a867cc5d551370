"""Replays: many mixed requests through a crowded engine, and each receipt's answer written again alone."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

from llamita.bench.bandwidth import use_threads
from llamita.bench.compare import Results, Settings
from llamita.bench.report import OURS, Row
from llamita.engine.engine import Engine
from llamita.engine.handle import RequestHandle
from llamita.engine.limits import EngineLimits
from llamita.engine.receipt import ModelFacts, Receipt, differences, replay
from llamita.generation.text_options import TextModel
from llamita.loader import load

REQUESTS, AT_ONCE = 1000, 64
CROWDED = EngineLimits(max_num_seqs=AT_ONCE, max_num_queued=REQUESTS, block_size=16, num_blocks=220)
LONGEST, MOST = 400, 120  # characters of a prompt, tokens of an answer
WORDS = ("once", "upon", "a", "time", "there", "was", "little", "llama", "who", "read", "books", "all", "day", "long")
BEGINNING = "Once upon a time there was a llama "  # of many prompts
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
SETTINGS: Sequence[Mapping[str, Any]] = (
    {"temperature": 0.0},
    {"temperature": 0.0, "repetition_penalty": 1.3},
    {"temperature": 0.8},
    {"temperature": 1.0, "top_p": 0.9},
    {"temperature": 1.2, "top_k": 11, "top_p": 0.95, "min_p": 0.01},
    {"temperature": 0.9, "presence_penalty": 0.7, "frequency_penalty": 0.4},
    {"temperature": 0.7, "logit_bias": {40: 3.0, 41: -100.0}},
    {"temperature": 0.0, "logprobs": 3},
    {"temperature": 1.0, "regex": "[a-z]{2,9}( [a-z]+)*\\."},
    {"temperature": 1.0, "json_schema": SCHEMA},
    {"temperature": 1.1, "stop": ["a", "zq"]},
)


def requests(count: int, seed: int, *, longest: int, most: int) -> list[tuple[str, dict[str, Any]]]:
    """Prompts that often begin alike, at most `longest` characters long, with options of at most `most` tokens."""
    dice = random.Random(seed)
    made: list[tuple[str, dict[str, Any]]] = []
    for number in range(count):
        shared, own = BEGINNING * (longest // 30), " ".join(dice.choices(WORDS, k=12))
        prompt = (shared[: dice.randrange(0, longest)] + own)[: dice.randrange(1, longest)]
        options = {"seed": seed * 1000 + number, "max_tokens": dice.randrange(1, most), **dice.choice(SETTINGS)}
        made.append((prompt, options))
    return made


def measure(settings: Settings, *, count: int = REQUESTS, limits: EngineLimits = CROWDED) -> Results:
    """Write `count` requests with cria in a cache too small for them, then replay every receipt alone.

    The rows count receipts, those whose tokens and log-probabilities came out the same, and preemptions.
    """
    use_threads(settings.threads)
    measured = Results()
    for format in settings.formats:
        settings.report(f"replays cria {format}")
        llm = load(quantize=None if format == "bf16" else format)
        with llm.engine(limits) as engine:
            written = write(engine, requests(count, 1, longest=LONGEST, most=MOST))
            preemptions = engine.stats.preemptions
        texts = TextModel(llm.model, llm.tokenizer)
        facts = ModelFacts.of(texts)
        equal = sum(is_same(texts, facts, *one) for one in written)
        values = {"receipts": len(written), "receipts that replay": equal, "preemptions": preemptions}
        measured.rows += [
            Row(test=name, shape="cria", format=format, system=OURS, median=value, min=value, max=value, unit="")
            for name, value in values.items()
        ]
    return measured


def write(engine: Engine, asked: Sequence[tuple[str, Mapping[str, Any]]]) -> list[tuple[RequestHandle, Receipt]]:
    """Let an engine write all requests, in any order that it likes; the handle and the receipt of each."""
    handles = [engine.submit(prompt, **options) for prompt, options in asked]
    for handle in handles:
        handle.result()
    return [(handle, Receipt.from_dict(engine.receipt(handle).to_dict())) for handle in handles]


def is_same(texts: TextModel, facts: ModelFacts, handle: RequestHandle, receipt: Receipt) -> bool:
    """Whether an answer that is written again alone is the one of the receipt."""
    _, again = replay(receipt, texts, handle.prompt_token_ids, facts)
    return not differences(receipt, again)
