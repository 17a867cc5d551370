"""The offloaded cache: a DynamicCache on the CPU, and the same logits from a device that is fed layer by layer."""

import pytest
import torch

from llamita import LlamaConfig, LlamaForCausalLM
from llamita.cache import Cache, DynamicCache, OffloadedCache

CONFIG = LlamaConfig(
    vocab_size=61, hidden_size=32, intermediate_size=28, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, initializer_range=0.3,
)  # fmt: skip


def written(cache: Cache, device: str) -> torch.Tensor:
    """Logits of passes between which the cache is changed in every way."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(CONFIG).eval().to(device)
    ids = torch.randint(0, 61, (3, 12)).to(device)
    with torch.no_grad():
        parts = [model(ids[:, :7], past_key_values=cache, use_cache=True).logits[:, -1]]
        for step, change in enumerate(
            (
                lambda: None,
                lambda: cache.reorder(torch.tensor([2, 0, 0], device=device)),
                lambda: cache.crop(5),
                lambda: cache.fork().reset(),
                lambda: cache.select(torch.tensor([1, 2, 1])),
            )
        ):
            change()
            parts.append(model(ids[:, [7 + step]], past_key_values=cache, use_cache=True).logits[:, -1])
    return torch.stack(parts)


def test_on_the_cpu_it_is_a_dynamic_cache() -> None:
    assert torch.equal(written(OffloadedCache(), "cpu"), written(DynamicCache(), "cpu"))


@pytest.mark.gpu
def test_on_a_gpu_it_gives_the_same_and_stays_outside() -> None:
    cache = OffloadedCache()
    assert torch.equal(written(cache, "cuda"), written(DynamicCache(), "cuda"))
    assert all(k.device.type == v.device.type == "cpu" for k, v in cache)


@pytest.mark.gpu
def test_a_gpu_holds_two_layers_at_a_time() -> None:
    layers, k = 16, torch.randn(1, 8, 4096, 128, device="cuda").bfloat16()
    peaks = []
    for cache in (DynamicCache(), OffloadedCache()):
        for layer in range(layers):
            cache.update(k, k, layer)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        for layer in range(layers):
            keys, _ = cache.update(k[:, :, :1], k[:, :, :1], layer)
            assert torch.equal(keys[:, :, :4096], k)
        peaks.append(torch.cuda.max_memory_allocated() / (2 * k.nbytes))
        del keys
        cache.reset()
    assert peaks[0] > layers
    assert peaks[1] < 6  # the layer at work before and after its new token, the next, and what this test holds


def test_rows_of_the_device_do_not_reach_the_fork() -> None:
    cache = OffloadedCache()
    for layer in range(2):
        cache.update(torch.ones(1, 1, 2, 4), torch.ones(1, 1, 2, 4), layer)
    twin = cache.fork()
    twin.update(torch.ones(1, 1, 1, 4), torch.ones(1, 1, 1, 4), 0)
    assert (cache.length, twin.length) == (2, 3)
