"""Our models of random weights, quick to make: every layer is a copy of the first, at addresses of its own."""

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

ROWS = 8192  # of a random matrix; further rows repeat them


def random(config: LlamaConfig, dtype: torch.dtype) -> LlamaForCausalLM:
    """A model with random weights, the same at each call."""
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


def build(shape_name: str, format: str) -> LlamaForCausalLM:
    """The model of a shape in a format, in eval mode, that ends no text by itself; cria with its own weights."""
    dtype, config = dtype_of(format), shape(shape_name).replace(eos_token_id=None)
    if shape_name == EMBEDDED:
        model = LlamaForCausalLM.from_pretrained(find(EMBEDDED), config=config, dtype=dtype)
        model.generation_config = {}
        return quantized(model, format, are_layers_alike=False)
    return quantized(random(config, dtype).eval(), format, are_layers_alike=True)


def quantized(model: LlamaForCausalLM, format: str, *, are_layers_alike: bool) -> LlamaForCausalLM:
    """The model with its weights in a format, by llama.cpp's recipe of that name.

    Of layers that are alike one is quantized and copied, and of rows that repeat only the first ones: the search of
    a K-quant takes a minute over 1B weights.
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
    """Quantize a weight whose rows repeat the first ones: those alone are searched."""
    if format not in BLOCKS:
        return quantize_weight(format, weight)
    return from_raw(format, _repeated(BLOCKS[format].quantize(weight[:ROWS]), weight.shape[0]))


def _repeated(rows: Tensor, count: int) -> Tensor:
    """So many rows, the first ones over and over."""
    return rows.repeat(-(-count // len(rows)), 1)[:count].contiguous()
