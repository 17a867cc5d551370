"""A Llama as an OpenVINO graph, in the patterns that OpenVINO's CPU plugin fuses: a state for each layer's keys and
values, and weights of 8 or 4 bits with scales, as its own compression (NNCF) writes them.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llamita.config import LlamaConfig
from llamita.model.rope import frequencies

openvino: Any = import_module("openvino")  # untyped, and perhaps installed in another environment only
op: Any = import_module("openvino.opset13")
state: Any = import_module("openvino.opset6")
Node = Any
Weights = Mapping[str, Tensor]

GROUP = 128  # columns that share a scale, with 4 bits


def build(config: LlamaConfig, weights: Weights, format: str) -> Any:
    """Build the graph: token ids (1, T), positions (1, T) and beam_idx (1,) to the last token's logits (1, 1, V)."""
    return _Graph(config, weights, format).model()


class _Graph:
    def __init__(self, config: LlamaConfig, weights: Weights, format: str) -> None:
        self._config, self._weights, self._format = config, weights, format
        self._assigns: list[Node] = []
        self._ids = op.parameter([1, -1], np.int64, name="input_ids")
        self._positions = op.parameter([1, -1], np.int64, name="position_ids")
        self._beam = op.parameter([1], np.int32, name="beam_idx")
        for node in (self._ids, self._positions, self._beam):
            node.output(0).get_tensor().set_names({node.get_friendly_name()})

    def model(self) -> Any:
        """The whole graph."""
        config, zero = self._config, op.constant(np.int64(0))
        # With 4 bits, embedding and head have 8, which is NNCF's default.
        outer = "int8" if self._format == "int4" else self._format
        table = compressed(self._weights["model.embed_tokens.weight"], outer)
        hidden = op.gather(table, self._ids, zero)  # (1, T, D)
        rotation = self._rotation()
        for layer in range(config.num_hidden_layers):
            name = f"model.layers.{layer}"
            hidden = op.add(hidden, self._attention(layer, self._norm(f"{name}.input_layernorm", hidden), rotation))
            hidden = op.add(hidden, self._mlp(name, self._norm(f"{name}.post_attention_layernorm", hidden)))
        last = op.gather(hidden, op.constant(np.array([-1])), op.constant(np.int64(1)))  # (1, 1, D)
        head = compressed(self._weights["lm_head.weight"], outer)
        logits = op.matmul(self._norm("model.norm", last), head, False, True)
        logits.output(0).get_tensor().set_names({"logits"})
        return openvino.Model([op.result(logits)], self._assigns, [self._ids, self._positions, self._beam], "llama")

    def _linear(self, name: str, x: Node) -> Node:
        return op.matmul(x, compressed(self._weights[f"{name}.weight"], self._format), False, True)

    def _norm(self, name: str, x: Node) -> Node:
        square = op.power(x, np.float32(2))
        mean = op.reduce_mean(square, op.constant(np.array([-1])), keep_dims=True)
        root = op.sqrt(op.add(mean, np.float32(self._config.rms_norm_eps)))
        scale = op.constant(self._weights[f"{name}.weight"].float().numpy())
        return op.multiply(scale, op.multiply(x, op.divide(np.float32(1), root)))

    def _mlp(self, name: str, x: Node) -> Node:
        gate = op.swish(self._linear(f"{name}.mlp.gate_proj", x))
        return self._linear(f"{name}.mlp.down_proj", op.multiply(gate, self._linear(f"{name}.mlp.up_proj", x)))

    def _rotation(self) -> tuple[Node, Node]:
        """Cosines and sines (1, 1, T, H)."""
        inverse, factor = frequencies(self._config)
        positions = op.unsqueeze(op.convert(self._positions, "f32"), op.constant(np.array([1, 3])))  # (1, 1, T, 1)
        angles = op.multiply(positions, op.constant(inverse.numpy().reshape(1, 1, 1, -1)))
        angles = op.concat([angles, angles], -1)
        return op.multiply(op.cos(angles), np.float32(factor)), op.multiply(op.sin(angles), np.float32(factor))

    def _attention(self, layer: int, x: Node, rotation: tuple[Node, Node]) -> Node:
        config, name = self._config, f"model.layers.{layer}.self_attn"
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        q = _rotated(self._heads(f"{name}.q_proj", x, heads), rotation)  # (1, N, T, H)
        k = _rotated(self._heads(f"{name}.k_proj", x, kv_heads), rotation)
        v = self._heads(f"{name}.v_proj", x, kv_heads)
        k, v = (self._cached(f"{layer}.{kind}", value) for kind, value in (("key", k), ("value", v)))
        k, v = (_repeated(value, kv_heads, heads // kv_heads, config.head_dim) for value in (k, v))
        out = op.scaled_dot_product_attention(q, k, v, causal=True)  # (1, N, T, H)
        out = op.transpose(out, op.constant(np.array([0, 2, 1, 3])))
        out = op.reshape(out, op.constant(np.array([0, 0, heads * config.head_dim])), True)
        return self._linear(f"{name}.o_proj", out)

    def _heads(self, name: str, x: Node, heads: int) -> Node:
        """Project x (1, T, D): (1, heads, T, H)."""
        shape = op.constant(np.array([0, 0, heads, self._config.head_dim]))
        return op.transpose(op.reshape(self._linear(name, x), shape, True), op.constant(np.array([0, 2, 1, 3])))

    def _cached(self, name: str, new: Node) -> Node:
        """Append new keys or values to a state, and return all of them (1, K, S, H)."""
        kv_heads, width = self._config.num_key_value_heads, self._config.head_dim
        nothing = op.constant(np.zeros((1, kv_heads, 0, width), np.float32))
        shape = openvino.PartialShape([1, kv_heads, -1, width])
        past = state.read_value(nothing, name, openvino.Type.f32, shape)
        both = op.concat([op.gather(past, self._beam, op.constant(np.int64(0))), new], 2)
        self._assigns.append(state.assign(both, name))
        return both


def _rotated(x: Node, rotation: tuple[Node, Node]) -> Node:
    """Rotate x (1, heads, T, H)."""
    cosine, sine = rotation
    half = x.get_output_partial_shape(0)[3].get_length() // 2
    parts = op.variadic_split(x, op.constant(np.int64(3)), op.constant(np.array([half, half])))
    across = op.concat([op.multiply(parts.output(1), np.float32(-1)), parts.output(0)], -1)
    return op.add(op.multiply(x, cosine), op.multiply(across, sine))


def _repeated(x: Node, kv_heads: int, times: int, width: int) -> Node:
    """Repeat keys or values (1, K, S, H) for every query head: (1, N, S, H)."""
    if times == 1:
        return x
    spread = op.broadcast(
        op.unsqueeze(x, op.constant(np.array([2]))),
        op.constant(np.array([1, 1, times, 1, 1])),
        broadcast_spec="BIDIRECTIONAL",
    )
    return op.reshape(spread, op.constant(np.array([0, kv_heads * times, -1, width])), True)


def compressed(weight: Tensor, format: str) -> Node:
    """Store a weight (N, K) in a format, and decompress it to fp32 in the graph."""
    return COMPRESSIONS[format](weight)


def _bf16(weight: Tensor) -> Node:
    bits = weight.to(torch.bfloat16).contiguous().view(torch.int16).numpy()
    stored = openvino.op.Constant(openvino.Tensor(bits, list(weight.shape), openvino.Type.bf16))
    return op.convert(stored, "f32")


def _int8(weight: Tensor) -> Node:
    """One scale per row, codes around 128."""
    weight = weight.float()
    scale = weight.abs().amax(1, keepdim=True).clamp(min=1e-10) / 127
    codes = (weight / scale).round().add(128).to(torch.uint8)
    stored = op.constant(codes.numpy())
    return _scaled(stored, op.constant(np.full((1, 1), 128, np.uint8)), scale)


def _int4(weight: Tensor) -> Node:
    """One scale per GROUP columns, codes around 8, two per byte; 8 bits if GROUP does not divide the columns."""
    rows, columns = weight.shape
    if columns % GROUP:
        return _int8(weight)
    groups = weight.float().reshape(rows, -1, GROUP)
    scale = groups.abs().amax(2, keepdim=True).clamp(min=1e-10) / 7
    codes = (groups / scale).round().add(8).to(torch.uint8)
    packed = (codes[..., 0::2] | codes[..., 1::2] << 4).numpy()
    stored = openvino.op.Constant(openvino.Tensor(packed, list(codes.shape), openvino.Type.u4))
    zero = openvino.op.Constant(openvino.Tensor(np.full(1, 8, np.uint8), [1, 1, 1], openvino.Type.u4))
    product = _scaled(stored, zero, scale, is_last=False)
    return op.convert(op.reshape(product, op.constant(np.array([rows, columns])), False), "f32")


def _scaled(codes: Node, zero: Node, scale: Tensor, *, is_last: bool = True) -> Node:
    centred = op.subtract(op.convert(codes, "f16"), op.convert(zero, "f16"))
    product = op.multiply(centred, op.constant(scale.numpy().astype(np.float16)))
    return op.convert(product, "f32") if is_last else product


COMPRESSIONS = {"fp32": lambda weight: op.constant(weight.float().numpy()), "bf16": _bf16, "int8": _int8, "int4": _int4}
