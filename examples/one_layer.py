"""One LlamaDecoderLayer by hand: every step of its forward pass, then the same in one call."""

import torch

from llamita import LlamaConfig, LlamaDecoderLayer, LlamaRotaryEmbedding
from llamita.context import from_arguments

torch.manual_seed(0)
config = LlamaConfig(hidden_size=48, intermediate_size=128, num_attention_heads=6, num_key_value_heads=2)
layer = LlamaDecoderLayer(config, layer_idx=0).eval()
attention, mlp = layer.self_attn, layer.mlp

x = torch.randn(1, 5, 48)  # (B, T, D): what the embedding, or the layer below, hands up
positions = torch.arange(5)[None]  # (B, T)
rotation = LlamaRotaryEmbedding(config)(positions, x.dtype)  # the angles of all positions, once for all layers

# Attention: queries of 6 heads, keys and values of 2 that every 3 query heads share.
normed = layer.input_layernorm(x)
q = attention.q_proj(normed).unflatten(-1, (6, 8))  # (B, T, N, H)
k = attention.k_proj(normed).unflatten(-1, (2, 8))  # (B, T, K, H)
v = attention.v_proj(normed).unflatten(-1, (2, 8))  # (B, T, K, H)
q, k = rotation(q), rotation(k)
k, v = k.repeat_interleave(3, dim=2), v.repeat_interleave(3, dim=2)  # (B, T, N, H)
scores = torch.einsum("btnh,bsnh->bnts", q, k) * 8**-0.5
scores = scores.masked_fill(~torch.ones(5, 5).tril().bool(), -torch.inf)  # no token sees a later one
heads = torch.einsum("bnts,bsnh->btnh", scores.softmax(-1), v)
x_attended = x + attention.o_proj(heads.flatten(-2))

# Feed-forward: one half of the wide projection gates the other.
normed = layer.post_attention_layernorm(x_attended)
by_hand = x_attended + mlp.down_proj(torch.nn.functional.silu(mlp.gate_proj(normed)) * mlp.up_proj(normed))

# The same in one call. Where tokens stand and how they attend is the context's business.
in_one = layer(x, rotation, from_arguments(x, scale=8**-0.5))
print("largest difference:", (by_hand - in_one).abs().max().item())
assert torch.allclose(by_hand, in_one, atol=1e-6)
