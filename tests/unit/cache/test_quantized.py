"""The quantized cache: its error, its bytes, and that a token is rounded once and never again."""

import pytest
import torch
from torch import Tensor

from llamita import LlamaConfig, LlamaForCausalLM
from llamita.cache import Cache, DynamicCache, QuantizedCache
from llamita.cache.quantized import dequantize, quantize
from llamita.errors import UsageError

B, K, H, LAYERS, GROUP, RESIDUAL = 2, 3, 12, 2, 4, 6
CONFIG = LlamaConfig(
    vocab_size=61, hidden_size=32, intermediate_size=28, num_hidden_layers=LAYERS, num_attention_heads=4,
    num_key_value_heads=2, initializer_range=0.3,
)  # fmt: skip


def small(bits: int = 8) -> QuantizedCache:
    return QuantizedCache(bits, group=GROUP, residual=RESIDUAL)


def append(cache: Cache, tokens: int) -> tuple[Tensor, Tensor]:
    """Random keys and values, put into every layer; returns what a pass would attend to."""
    k, v = torch.randn(2, B, K, tokens, H)
    pairs = [cache.update(k, v, layer) for layer in range(LAYERS)]
    return pairs[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dim", [3, 4])
def test_no_number_moves_further_than_half_a_step(dim: int, bits: int, dtype: torch.dtype) -> None:
    x = (torch.randn(B, K, 5, GROUP, H) * torch.tensor([0.01, 1.0, 100.0])[None, :, None, None, None] + 1).to(dtype)
    blocks = quantize(x, bits, dim)
    assert blocks.codes.dtype == torch.uint8
    assert blocks.codes.shape[-1] == H * bits // 8
    back = dequantize(blocks, bits)
    assert back.dtype == dtype
    low, high = x.float().aminmax(dim=dim, keepdim=True)
    # Half a step, and the rounding of the scale, of the lowest value and of the result in the dtype itself.
    bound = (high - low) / (2**bits - 1) / 2 + 3 * torch.finfo(dtype).eps * torch.maximum(low.abs(), high.abs())
    assert ((back.float() - x.float()).abs() <= bound).all()
    assert torch.equal(dequantize(quantize(torch.full_like(x, 0.5), bits, dim), bits), torch.full_like(x, 0.5))


def test_only_what_left_the_window_is_rounded_and_only_once() -> None:
    cache, exact = small(4), DynamicCache()
    torch.manual_seed(0)
    first, _ = append(cache, 9)
    torch.manual_seed(0)
    whole, _ = append(exact, 9)
    assert torch.equal(first, whole)  # a pass sees its own tokens as they are
    assert cache.keys[0].shape[2] == 9  # 3 tokens have left the window, a group needs 4
    append(cache, 1)
    assert cache.keys[0].shape[2] == RESIDUAL
    rounded = next(iter(cache))[0]
    assert not torch.equal(rounded[:, :, :4], whole[:, :, :4])
    assert torch.equal(rounded[:, :, 4:9], whole[:, :, 4:])
    for _ in range(9):
        keys, _ = append(cache, 1)
        assert torch.equal(keys[:, :, :4], rounded[:, :, :4])


def test_a_crop_within_a_group_changes_no_number() -> None:
    cache = small()
    append(cache, 21)
    before = [(k.clone(), v.clone()) for k, v in cache]
    for kept in (20, 15, 14, 9, 3):
        cache.crop(kept)
        assert cache.length == kept
        for (k, v), (old_k, old_v) in zip(cache, before, strict=True):
            assert torch.equal(k, old_k[:, :, :kept])
            assert torch.equal(v, old_v[:, :, :kept])
    append(cache, 8)
    assert cache.length == 11


@pytest.mark.parametrize(("bits", "expected"), [(8, 8.5), (4, 4.5)])
def test_bytes_of_a_token(bits: int, expected: float) -> None:
    cache = QuantizedCache(bits, group=64, residual=0)
    k = torch.randn(1, 2, 640, 128).bfloat16()
    cache.update(k, k, 0)
    assert cache.nbytes * 8 == 2 * k.numel() * expected
    exact = DynamicCache()
    exact.update(k, k, 0)
    assert exact.nbytes * 8 == 2 * k.numel() * 16


@pytest.mark.parametrize(("bits", "bound"), [(8, 0.02), (4, 0.2)])
def test_logits_stay_near_those_of_exact_keys(bits: int, bound: float) -> None:
    model = LlamaForCausalLM(CONFIG).eval()
    ids = torch.randint(0, 61, (B, 24))
    with torch.no_grad():
        expected = model(ids, use_cache=False).logits[:, -4:]
        cache = small(bits)
        model(ids[:, :20], past_key_values=cache, use_cache=True)
        logits = torch.cat([model(ids[:, [i]], past_key_values=cache).logits for i in range(20, 24)], 1)
    error = (logits - expected).norm() / expected.norm()
    assert 0 < error < bound


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(UsageError, match=r"^a cache of 3 bits is not known: use 8 or 4$"):
        QuantizedCache(3)
    for settings in ({"group": 5}, {"group": 0}, {"residual": -1}):
        with pytest.raises(UsageError, match=r"give an even group of at least 2, a residual >= 0$"):
            QuantizedCache(**settings)
