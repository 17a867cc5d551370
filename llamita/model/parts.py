"""A decoder layer described once, for all plans: what it is made of."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from llamita.config import LlamaConfig
from llamita.errors import UnsupportedError
from llamita.model.activations import ACTIVATIONS
from llamita.model.layers import LlamaAttention, LlamaDecoderLayer, LlamaMLP, LlamaRMSNorm

# Where each part is: the name under the layer. A family's odd part is one more row here, and one more field below.
NAMES = {
    "input_norm": "input_layernorm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "post_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
LEAVES = {part: name.rpartition(".")[2] for part, name in NAMES.items()}  # the names in the modules that have them
NORMS = ("input_norm", "post_norm")
SILU = ("silu", "swish")
PRODUCTS = ("q", "k", "v", "o", "gate", "up", "down")


@dataclass(frozen=True, eq=False)
class LayerParts:
    """What a decoder layer is made of: norm, q, k, v, attention, o; then norm, down(act(gate) * up).

    Attention is the context's, which is given the layer's `index`; the activation is the one that the config names.
    """

    index: int
    head_dim: int
    input_norm: LlamaRMSNorm
    q: nn.Module
    k: nn.Module
    v: nn.Module
    o: nn.Module
    post_norm: LlamaRMSNorm
    gate: nn.Module
    up: nn.Module
    down: nn.Module

    @property
    def qkv(self) -> tuple[nn.Module, nn.Module, nn.Module]:
        """The projections that read the first norm."""
        return self.q, self.k, self.v

    @property
    def products(self) -> tuple[nn.Module, ...]:
        """All matrix products, in the order of `PRODUCTS`."""
        return tuple(getattr(self, name) for name in PRODUCTS)


def parts_of(layer: nn.Module, config: LlamaConfig, *, plan: str) -> LayerParts:
    """Read a layer for a plan, whose name the error says. Raises UnsupportedError for one that is not a Llama's."""
    reason = next(_strange(layer, config), None)
    if reason is not None:
        raise UnsupportedError(f"{reason}, which {plan} does not know: use the model without")
    attention = layer.get_submodule("self_attn")
    assert isinstance(attention, LlamaAttention)
    found: dict[str, Any] = {part: layer.get_submodule(name) for part, name in NAMES.items()}
    return LayerParts(index=attention.layer_idx, head_dim=attention.head_dim, **found)


def unknown(config: LlamaConfig, *, any_rotary: bool = False) -> str | None:
    """What of a config kernels do not know, in the words of a refusal; None where they know all.

    any_rotary: whether frequencies may depend on the length.
    """
    if config.hidden_act not in SILU:
        return f"its activation is {config.hidden_act}, and the kernels know the feed-forward with SiLU alone"
    if not any_rotary and config.rope_parameters.depends_on_length:
        return f"its rotary type {config.rope_parameters.rope_type} depends on the length"
    return None


def _strange(layer: nn.Module, config: LlamaConfig) -> Iterator[str]:
    """What a layer is that the description has no words for; whoever asks for the next knows all before to be plain."""
    kinds = {"self_attn": LlamaAttention, "mlp": LlamaMLP, **{NAMES[norm]: LlamaRMSNorm for norm in NORMS}}
    if type(layer) is not LlamaDecoderLayer:
        yield f"a {type(layer).__name__} is no plain Llama layer"
    for name, kind in kinds.items():
        part = layer.get_submodule(name)
        if type(part) is not kind:
            yield f"a {type(part).__name__} in the place of {name} is no part of a plain Llama layer"
    if layer.get_submodule("mlp").act_fn is not ACTIVATIONS[config.hidden_act]:
        yield f"an activation that is not {config.hidden_act}, as its config says, is no plain Llama layer's"
