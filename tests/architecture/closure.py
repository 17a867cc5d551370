"""What runs between `LlamaForCausalLM.forward` and its logits, seen by tracing a plain forward pass."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from tests.architecture.source import Module

MODULES = 14
CODE_LINES = 1_000


def files_run(call: Callable[[], object], folder: Path) -> set[Path]:
    """Files under a folder whose functions run during a call; the bodies of modules it imports do not count."""
    seen: set[str] = set()
    importing = 0

    def record(frame: FrameType, event: str, _argument: Any) -> None:
        nonlocal importing
        if event not in ("call", "return"):
            return
        if frame.f_code.co_name == "<module>":
            importing += 1 if event == "call" else -1
        elif not importing:
            seen.add(frame.f_code.co_filename)

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


def closure(modules: list[Module], folder: Path) -> list[Module]:
    """Modules of the package that a plain forward pass runs, with and without a cache."""
    reached = files_run(plain_forward(), folder)
    return [module for module in modules if module.path in reached]
