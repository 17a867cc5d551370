"""The parts of a Llama: norm, feed-forward, attention, and the layer made of them."""

import torch
from torch import Tensor, nn

from llamita.config import LlamaConfig
from llamita.context.protocol import Context, Rotation
from llamita.model.activations import ACTIVATIONS


def at_least_fp32(x: Tensor) -> Tensor:
    """Numbers in fp32; those in fp64 stay, so that fp64 shows whether two ways to compute a gradient are the same."""
    return x if x.dtype == torch.float64 else x.float()


class LlamaRMSNorm(nn.Module):
    """Divide by the root mean square, then scale (arXiv:1910.07467): (..., D) -> (..., D)."""

    def __init__(self, hidden_size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.variance_epsilon = eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Normalize in fp32 or more. The scale comes after the cast down: F.rms_norm rounds once, in another place."""
        x = at_least_fp32(hidden_states)
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * x.to(hidden_states.dtype)

    def extra_repr(self) -> str:
        """Shown by print(model)."""
        return f"{tuple(self.weight.shape)}, eps={self.variance_epsilon}"


class LlamaMLP(nn.Module):
    """The gated feed-forward (arXiv:2002.05202): (B, T, D) -> (B, T, D), F wide inside."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        wide, narrow, bias = config.intermediate_size, config.hidden_size, config.mlp_bias
        self.gate_proj = nn.Linear(narrow, wide, bias=bias)
        self.up_proj = nn.Linear(narrow, wide, bias=bias)
        self.down_proj = nn.Linear(wide, narrow, bias=bias)
        self.act_fn = ACTIVATIONS[config.hidden_act]

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Gate, multiply, project back."""
        return self.down_proj(self.act_fn(self.gate_proj(hidden_states)) * self.up_proj(hidden_states))


class LlamaAttention(nn.Module):
    """Projections around attention. The context, not this module, decides how tokens attend, and to what.

    Head counts are read off the projections' outputs, so a tensor-parallel shard needs no rewriting.
    """

    def __init__(self, config: LlamaConfig, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        width, bias = config.hidden_size, config.attention_bias
        self.q_proj = nn.Linear(width, config.num_attention_heads * self.head_dim, bias=bias)
        self.k_proj = nn.Linear(width, config.num_key_value_heads * self.head_dim, bias=bias)
        self.v_proj = nn.Linear(width, config.num_key_value_heads * self.head_dim, bias=bias)
        self.o_proj = nn.Linear(config.num_attention_heads * self.head_dim, width, bias=bias)

    def forward(self, hidden_states: Tensor, rotation: Rotation, context: Context) -> Tensor:
        """Project, let the context attend, project back: (B, T, D) -> (B, T, D)."""
        q, k, v = self.heads(hidden_states)
        out = context.attend(q, k, v, rotation, layer=self.layer_idx)  # (B, T, N, H)
        return self.join(out)

    def heads(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, head by head: (B, T, D) -> q (B, T, N, H), k and v (B, T, K, H)."""
        q = self.q_proj(hidden_states).unflatten(-1, (-1, self.head_dim))  # (B, T, N, H)
        k = self.k_proj(hidden_states).unflatten(-1, (-1, self.head_dim))  # (B, T, K, H)
        v = self.v_proj(hidden_states).unflatten(-1, (-1, self.head_dim))  # (B, T, K, H)
        return q, k, v

    def join(self, attended: Tensor) -> Tensor:
        """The output projection of all heads together: (B, T, N, H) -> (B, T, D)."""
        return self.o_proj(attended.flatten(-2))


class LlamaDecoderLayer(nn.Module):
    """Norm, attend, add; norm, feed forward, add: (B, T, D) -> (B, T, D)."""

    def __init__(self, config: LlamaConfig, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = LlamaAttention(config, layer_idx)
        self.mlp = LlamaMLP(config)
        self.input_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, hidden_states: Tensor, rotation: Rotation, context: Context) -> Tensor:
        """Both halves read the residual stream through a norm and add to it."""
        return self.finish(hidden_states, self.self_attn(self.input_layernorm(hidden_states), rotation, context))

    def finish(self, hidden_states: Tensor, attended: Tensor) -> Tensor:
        """Add what attention gives, then the feed-forward of the sum: (B, T, D) twice -> (B, T, D)."""
        hidden_states = hidden_states + attended
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))
