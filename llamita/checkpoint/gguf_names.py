"""GGUF's names for a Llama's weights, and its order of the rows of queries and keys."""

import re
from pathlib import Path

import torch
from torch import Tensor

from llamita.config import LlamaConfig

# Names of modules: ours, theirs. A layer's are under model.layers.N and blk.N.
OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
IN_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
FREQUENCY_FACTORS = "rope_freqs.weight"  # what the rotary frequencies are divided by: (H/2,)
_OURS = re.compile(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)")
_THEIRS = re.compile(r"blk\.(\d+)\.(.+)\.(weight|bias)")
_OUTSIDE_BACK = {theirs: ours for ours, theirs in OUTSIDE.items()}
_IN_LAYER_BACK = {theirs: ours for ours, theirs in IN_LAYER.items()}


def is_gguf(path: str | Path) -> bool:
    """Whether a name is that of a GGUF file."""
    return str(path).lower().endswith(".gguf")


def to_gguf(name: str) -> str | None:
    """GGUF's name for one of our weights; None where it has none."""
    if found := _OURS.fullmatch(name):
        part = IN_LAYER.get(found[2])
        return part and f"blk.{found[1]}.{part}.{found[3]}"
    module, _, leaf = name.rpartition(".")
    return f"{OUTSIDE[module]}.{leaf}" if module in OUTSIDE else None


def from_gguf(name: str) -> str | None:
    """Our name for a weight in a GGUF file; None for one that is no Llama's."""
    if found := _THEIRS.fullmatch(name):
        part = _IN_LAYER_BACK.get(found[2])
        return part and f"model.layers.{found[1]}.{part}.{found[3]}"
    module, _, leaf = name.rpartition(".")
    return f"{_OUTSIDE_BACK[module]}.{leaf}" if module in _OUTSIDE_BACK else None


def heads_of(name: str, config: LlamaConfig) -> int | None:
    """The heads whose rows GGUF keeps in another order than we do: of the queries or the keys; None of the rest."""
    if ".q_proj." in name:
        return config.num_attention_heads
    return config.num_key_value_heads if ".k_proj." in name else None


def interleaved(rows: Tensor, heads: int | None) -> Tensor:
    """Rows (N, ...) as GGUF has them: each pair that turns together side by side, not half a head apart.

    Whole rows move, so they may as well be the bytes of blocks.
    """
    return rows if heads is None else rows[_order(rows.shape[0], heads, 2)]


def halved(rows: Tensor, heads: int | None) -> Tensor:
    """The inverse of `interleaved`."""
    return rows if heads is None else rows[halved_order(rows.shape[0], heads)]


def halved_order(rows: int, heads: int) -> Tensor:
    """The rows that `halved` takes, in order: int64 (rows,)."""
    return _order(rows, heads, rows // heads // 2)


def _order(rows: int, heads: int, parts: int) -> Tensor:
    return torch.arange(rows, device="cpu").view(heads, parts, -1).transpose(1, 2).reshape(-1)
