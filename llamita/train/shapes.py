"""Shapes of models that are started at random, by name; the vocabulary is the tokenizer's."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from llamita.config import LlamaConfig
from llamita.errors import UsageError
from llamita.model.initial import initialize
from llamita.model.llama import LlamaForCausalLM
from llamita.model.loading import put
from llamita.tokenizer.protocol import Tokenizer

# name: (hidden_size, num_hidden_layers, num_attention_heads, num_key_value_heads, intermediate_size)
SHAPES: Mapping[str, tuple[int, int, int, int, int]] = {
    "pico": (64, 2, 4, 2, 176),
    "nano": (128, 4, 4, 2, 384),
    "micro": (192, 6, 6, 2, 512),
    "cria": (256, 4, 4, 2, 512),
    "mini": (288, 6, 6, 6, 768),
    "small": (512, 8, 8, 4, 1376),
    "base": (768, 12, 12, 12, 2048),
}
# Weights are drawn so whatever torch's defaults are: the numbers depend on the seed alone.
IN_MEMORY: Mapping[str, Any] = {"dtype": torch.float32, "device": "cpu"}


def first_weights(model: LlamaForCausalLM, *, seed: int, device: torch.device) -> None:
    """Give a model without weights its first ones; each process keeps its own part, or its own stage.

    They are normal(0, 0.02); those of o_proj and down_proj, which layers add to the residual stream, are divided by
    sqrt(2 layers) (GPT-2's rule). Each is drawn whole, on the CPU, and one after another, those of other stages too:
    the numbers depend on the seed alone.
    """
    fit, own = model.fit, dict(model.named_parameters())
    whole = LlamaForCausalLM.without_weights(model.config)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for module in whole.model.modules():
            _draw_as_torch_does(module)
        for name, parameter in whole.named_parameters():
            weight = _first_weight(whole, name, parameter.shape)
            if name in own:
                put(model, name, fit(weight, own[name], dtype=weight.dtype, device=device, copies=True))
    model.complete(device)


def _draw_as_torch_does(module: nn.Module) -> None:
    """Make a module's torch would-be weights and drop them: the constructors of a whole model draw before its own."""
    if isinstance(module, nn.Linear):
        nn.Linear(module.in_features, module.out_features, bias=module.bias is not None, **IN_MEMORY)
    elif isinstance(module, nn.Embedding):
        nn.Embedding(module.num_embeddings, module.embedding_dim, **IN_MEMORY)


def _first_weight(model: LlamaForCausalLM, name: str, shape: torch.Size) -> Tensor:
    owner, _, leaf = name.rpartition(".")
    if owner == "lm_head":  # of an untied model, made after the rest
        _draw_as_torch_does(model.lm_head)
    weight = torch.empty(shape, **IN_MEMORY)
    initialize(model.get_submodule(owner), leaf, weight, std=model.config.initializer_range)
    if name.endswith(("o_proj.weight", "down_proj.weight")):
        weight.mul_(1 / math.sqrt(2 * model.config.num_hidden_layers))
    return weight


def config_of(shape: str, tokenizer: Tokenizer, *, length: int) -> LlamaConfig:
    """The config of a shape for a tokenizer; the model reads `length` tokens. Raises UsageError for an unknown name."""
    if shape not in SHAPES:
        raise UsageError(f"shape is {shape!r}: use one of {', '.join(SHAPES)}, or --model for a checkpoint's")
    hidden, layers, heads, key_value_heads, wide = SHAPES[shape]
    return LlamaConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=hidden,
        intermediate_size=wide,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        max_position_embeddings=length,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        dtype="float32",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_ids or None,
        pad_token_id=tokenizer.pad_token_id,
    )
