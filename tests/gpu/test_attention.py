"""The backends on a CUDA device, against the reference on the CPU."""

from typing import Any

import pytest
import torch

from llamita import LlamaConfig, LlamaForCausalLM
from llamita.attention import backend
from llamita.attention.eager import attend as eager
from llamita.attention.mask import Mask
from llamita.cache.dynamic import DynamicCache

pytestmark = pytest.mark.gpu

B, N, K, H = 2, 6, 2, 64
PADDING = torch.arange(150) >= torch.tensor([[31], [0]])
DOCUMENTS = (torch.arange(150) // torch.tensor([[40], [150]])).long()
CASES: dict[str, tuple[int, int, dict[str, Any]]] = {  # T, S, and the rest
    "plain": (150, 150, {}),
    "window": (150, 150, {"window": 20}),
    "padding": (150, 150, {"padding": PADDING}),
    "documents": (150, 150, {"documents": (DOCUMENTS, DOCUMENTS)}),
    "cached": (3, 150, {"offset": 147, "padding": PADDING}),
    "one query": (1, 150, {"offset": 149, "padding": PADDING}),
}


def moved(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(moved(one) for one in value)
    return value.cuda() if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize("name", ["sdpa", "flex", "flash_attention_2"])
@pytest.mark.parametrize("case", CASES)
def test_equals_the_reference(case: str, name: str) -> None:
    queries, keys, given = CASES[case]
    q, k, v = (torch.randn(B, heads, length, H) for heads, length in ((N, queries), (K, keys), (K, keys)))
    expected = eager(q, k, v, Mask(queries, keys, device=torch.device("cpu"), **given), scale=0.1)
    mask = Mask(queries, keys, device=torch.device("cuda"), **{key: moved(value) for key, value in given.items()})
    out = backend(name)(*(x.cuda().bfloat16() for x in (q, k, v)), mask, scale=0.1)
    assert out.isfinite().all()
    real = mask.visible.any(-1).expand(B, N, -1).transpose(1, 2).cpu()
    torch.testing.assert_close(out.float().cpu()[real], expected[real], atol=3e-2, rtol=3e-2)


@pytest.mark.parametrize("name", ["sdpa", "flex", "flash_attention_2"])
def test_gradients_are_finite_and_near_the_references(name: str) -> None:
    config = LlamaConfig(
        vocab_size=97, hidden_size=128, intermediate_size=160, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, use_cache=False, initializer_range=0.1,
    )  # fmt: skip
    model = LlamaForCausalLM(config).cuda().bfloat16()
    ids, mask = torch.randint(0, 97, (2, 150)).cuda(), PADDING.cuda()
    gradients = []
    for which in ("eager", name):
        model.set_attn_implementation(which)
        model.zero_grad()
        model(ids, mask, labels=ids.where(mask, -100)).loss.backward()
        gradients.append(torch.cat([p.grad.float().flatten() for p in model.parameters() if p.grad is not None]))
    assert gradients[1].isfinite().all()
    assert torch.cosine_similarity(*gradients, dim=0) > 0.999


@torch.no_grad()
@pytest.mark.parametrize("name", ["flex", "flash_attention_2"])
def test_a_padded_batch_is_continued_as_under_sdpa(name: str) -> None:
    config = LlamaConfig(
        vocab_size=97, hidden_size=256, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.1,
    )  # fmt: skip
    model = LlamaForCausalLM(config).cuda().bfloat16().eval()
    ids, mask = torch.randint(0, 97, (2, 150)).cuda(), PADDING.cuda()
    logits = []
    for which in ("sdpa", name):
        model.set_attn_implementation(which)
        cache, seen = DynamicCache(), []
        for first, last in ((0, 140), (140, 148), (148, 149), (149, 150)):
            seen.append(model(ids[:, first:last], mask[:, :last], past_key_values=cache).logits[:, -1])
        logits.append(torch.stack(seen).float())
    assert logits[1].isfinite().all()
    torch.testing.assert_close(logits[1], logits[0], atol=0.1, rtol=0.05)
