"""Models with random weights, made quickly: every layer is a copy of the first, in memory of its own."""

from copy import deepcopy
from typing import cast

import torch
from torch import Tensor

from llamita.bench.formats import dtype_of, is_quantized
from llamita.bench.shapes import EMBEDDED, shape
from llamita.checkpoint.load import find
from llamita.config import LlamaConfig
from llamita.kernels.blocks import FORMATS as BLOCKS
from llamita.model.llama import LlamaForCausalLM
from llamita.quant.block_matrix import from_raw
from llamita.quant.matrix import QuantizedMatrix
from llamita.quant.surgery import choices, freeze, put, quantize_weight

ROWS = 8192  # random rows of a matrix; the others repeat them


def random(config: LlamaConfig, dtype: torch.dtype) -> LlamaForCausalLM:
    """A model with random weights, the same in every call."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(config.replace(num_hidden_layers=1)).to(dtype)
    for module in (model.model.embed_tokens, model.lm_head):
        module.weight.data.copy_(_repeated(module.weight.data[:ROWS].clone(), config.vocab_size))
    layers = model.model.layers
    for number in range(1, config.num_hidden_layers):
        layer = deepcopy(layers[0])
        layer.self_attn.layer_idx = number  # type: ignore[union-attr]
        layers.append(layer)
    model.config = model.model.config = config
    return model


def to_train(config: LlamaConfig, method: str) -> LlamaForCausalLM:
    """The same in fp32; what is frozen has values of bf16, as most checkpoints have."""
    return random(config, torch.float32) if method == "full" else random(config, torch.bfloat16).float()


def build(shape_name: str, format: str) -> LlamaForCausalLM:
    """The model of a shape in a format, in eval mode, without an end token; cria has its trained weights."""
    dtype, config = dtype_of(format), shape(shape_name).replace(eos_token_id=None)
    if shape_name == EMBEDDED:
        model = LlamaForCausalLM.from_pretrained(find(EMBEDDED), config=config, dtype=dtype)
        model.generation_config = {}
        return quantized(model, format, are_layers_alike=False)
    return quantized(random(config, dtype).eval(), format, are_layers_alike=True)


def quantized(model: LlamaForCausalLM, format: str, *, are_layers_alike: bool) -> LlamaForCausalLM:
    """Quantize a model by llama.cpp's recipe of the format's name.

    are_layers_alike: quantize one layer, and only the rows that differ, and copy the result. The search of a K-quant
    takes a minute for 1B weights.
    """
    if not is_quantized(format):
        return model
    make = _from_first_rows if are_layers_alike else quantize_weight
    made: dict[tuple[str, str], QuantizedMatrix] = {}
    for choice in choices(model, format):
        if choice.format_name is None:
            continue
        name = choice.names[0]
        key = (choice.format_name, name.split(".", 3)[-1] if are_layers_alike else name)
        weight = cast("Tensor", model.get_submodule(name).weight).detach()
        if key not in made:
            made[key] = make(choice.format_name, weight)
        put(model, choice.names, deepcopy(made[key]))
    freeze(model)
    return model


def _from_first_rows(format: str, weight: Tensor) -> QuantizedMatrix:
    """Quantize only the first rows of a weight, which the other rows repeat."""
    if format not in BLOCKS:
        return quantize_weight(format, weight)
    return from_raw(format, _repeated(BLOCKS[format].quantize(weight[:ROWS]), weight.shape[0]))


def _repeated(rows: Tensor, count: int) -> Tensor:
    """Repeat rows until there are `count`."""
    return rows.repeat(-(-count // len(rows)), 1)[:count].contiguous()
