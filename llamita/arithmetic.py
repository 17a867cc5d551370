"""Do the CPU's kernels give the bits that they give on every other machine? One digest for each format of weights.

The models are made of integers from a generator, so nothing but the kernels decides: their weights, their codes and
their rotary frequencies have the same bits everywhere.
"""

import hashlib
import json
from collections.abc import Iterator
from importlib.resources import files

import torch
from torch import Tensor

from llamita.cache.growing import GrowingCache
from llamita.config import LlamaConfig
from llamita.kernels.blocks import FORMATS
from llamita.kernels.quantized_blocks import QuantizedBlocks
from llamita.model.llama import LlamaForCausalLM
from llamita.model.stored import StoredWeight
from llamita.plans.cpu import fuse
from llamita.quant.block_matrix import from_blocks
from llamita.quant.surgery import quantize

PLAIN = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
NAMES = (*PLAIN, *FORMATS)
PROMPTS = 64


def digests(names: tuple[str, ...] = NAMES) -> Iterator[tuple[str, str]]:
    """The name of each format, and the sha256 of the logits of 64 prompts with weights in it."""
    for name in names:
        yield name, digest(model_of(name))


def expected() -> dict[str, str]:
    """The digests that every machine gives."""
    return json.loads((files("llamita") / "arithmetic.json").read_text(encoding="utf-8"))


def combined(found: dict[str, str]) -> str:
    """One digest over those of all formats."""
    return hashlib.sha256("".join(found[name] for name in sorted(found)).encode()).hexdigest()


def processors() -> list[str]:
    """A processor for LLAMITA_CPU of each instruction set that runs here; one without FMA would take hours."""
    from llamita.kernels.cpu import isa  # with it comes LLVM

    return [row.cpu for row in isa.runnable() if row.fma == "instruction"]


@torch.inference_mode()
def digest(model: LlamaForCausalLM) -> str:
    """The sha256 of the logits (fp32, little-endian) of the last two tokens of 64 prompts of 1 to 190 tokens.

    A first pass reads all tokens of a prompt but the last, a second one the last.
    """
    sha = hashlib.sha256()
    for number in range(PROMPTS):
        ids = _integers(model.config.vocab_size, 1, 1 + 3 * number, seed=number)
        cache = GrowingCache()
        for part in (ids[:, :-1], ids[:, -1:]):
            if part.shape[1]:
                logits = model(part, past_key_values=cache, logits_to_keep=1).logits
                sha.update(logits.contiguous().numpy().astype("<f4").tobytes())
    return sha.hexdigest()


def model_of(name: str) -> LlamaForCausalLM:
    """A model of two layers, all sizes different, with weights in a dtype or a block format, and with kernels."""
    config = LlamaConfig(
        vocab_size=131, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=2, head_dim=48,
    ) if name in PLAIN else LlamaConfig(
        vocab_size=131, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=64,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval().to(PLAIN.get(name, torch.bfloat16))
    for number, (parameter_name, parameter) in enumerate(model.named_parameters()):
        values = (_integers(255, *parameter.shape, seed=number) - 127) / 1024  # exact in every dtype
        parameter.data.copy_(1 + values if "norm" in parameter_name else values)
    half = config.head_dim // 2
    frequencies = torch.tensor([10_000.0 ** (-i / half) for i in range(half)], dtype=torch.float64)
    model.model.rotary_emb.inv_freq.copy_(frequencies.float())
    if name in FORMATS:
        _quantize(model, name)
    return fuse(model)


def _quantize(model: LlamaForCausalLM, name: str) -> None:
    """Put random blocks of a format into all layers: to fit blocks to weights would add in torch's order."""
    quantize(model, name)
    stored = [module for module in model.modules() if isinstance(module, StoredWeight)]
    for seed, module in enumerate(stored):
        rows, columns = module.matrix.shape
        form = FORMATS[name]
        blocks = form.codes(torch.zeros(rows, columns // form.block * form.nbytes, dtype=torch.uint8))
        module.matrix = from_blocks(_random(blocks, seed), name)


def _random(blocks: QuantizedBlocks, seed: int) -> QuantizedBlocks:
    """The same with random codes and scales, which make weights of about a hundredth."""
    blocks.codes = _integers(2**blocks.bits, *blocks.codes.shape, seed=seed).to(torch.uint8)
    largest = 2.0 ** (blocks.bits - 1) if blocks.values is None else 127.0
    for part in ("sub_scale", "sub_minimum"):
        values = getattr(blocks, part)
        if values is not None:
            setattr(blocks, part, (1 + _integers(63, *values.shape, seed=seed)).to(values.dtype))
            largest *= 32.0 if part == "sub_scale" else 1.0
    for part in ("scale", "minimum"):
        values = getattr(blocks, part)
        if values is not None and values.dtype == torch.int8:
            setattr(blocks, part, (_integers(3, *values.shape, seed=seed) - 9).to(torch.int8))
        elif values is not None:
            steps = (1 + _integers(31, *values.shape, seed=seed)) / 2048
            setattr(blocks, part, (steps / largest * 2).half())
    return blocks


def _integers(count: int, *shape: int, seed: int) -> Tensor:
    """Random integers below `count`, from a generator whose integers are the same on every machine."""
    return torch.randint(count, shape, generator=torch.Generator().manual_seed(seed), device="cpu")
