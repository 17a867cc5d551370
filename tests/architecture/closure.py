"""What runs between `LlamaForCausalLM.forward` and its logits, seen by tracing a plain forward pass."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from tests.architecture.source import Module

MODULES = 14
CODE_LINES = 1_000
TO_FIRST_TOKEN = 15  # modules outside the model
INSIDE_MODEL = frozenset({"model", "attention", "context", "cache", "config"})
FIRST_TOKEN = "Sequence.push"  # the function that takes a token that was chosen


def files_run(call: Callable[[], object], folder: Path, *, until: str = "") -> set[Path]:
    """Files under a folder whose functions run during a call; the bodies of modules it imports do not count.

    until: the qualified name of the last function that counts.
    """
    seen: set[str] = set()
    importing = 0
    is_over = False

    def record(frame: FrameType, event: str, _argument: Any) -> None:
        nonlocal importing, is_over
        if event not in ("call", "return"):
            return
        if frame.f_code.co_name == "<module>":
            importing += 1 if event == "call" else -1
        elif not importing and not is_over:
            seen.add(frame.f_code.co_filename)
            is_over = frame.f_code.co_qualname == until

    before = sys.getprofile()
    sys.setprofile(record)
    try:
        call()
    finally:
        sys.setprofile(before)
    return {path for path in map(Path, seen) if path.is_relative_to(folder)}


def plain_forward() -> Callable[[], object]:
    """A small model, ready to be run as most run it: a whole sequence, then a token on its cache; sdpa, CPU."""
    import torch

    from llamita import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=97, hidden_size=48, intermediate_size=88, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    tokens = torch.arange(10)[None]

    @torch.no_grad()
    def run() -> None:
        model(tokens, use_cache=False)
        cache = model(tokens, use_cache=True).past_key_values
        model(tokens[:, -1:], past_key_values=cache)

    return run


def first_token() -> Callable[[], object]:
    """The embedded model, ready to write one token greedily from a text, without kernels."""
    import llamita

    llm = llamita.load(kernels="off")
    llm.generate("Once", max_tokens=1, temperature=0)  # what is loaded once is loaded
    return lambda: llm.generate("Once upon a time", max_tokens=1, temperature=0)


def road(modules: list[Module], folder: Path) -> list[Module]:
    """Modules outside the model that `LLM.generate` runs until it has its first token."""
    reached = files_run(first_token(), folder, until=FIRST_TOKEN)
    return [module for module in modules if module.path in reached and module.room not in INSIDE_MODEL]


def closure(modules: list[Module], folder: Path) -> list[Module]:
    """Modules of the package that a plain forward pass runs, with and without a cache."""
    reached = files_run(plain_forward(), folder)
    return [module for module in modules if module.path in reached]
