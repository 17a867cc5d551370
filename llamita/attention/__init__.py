"""How tokens attend: interchangeable backends of one signature, each imported only when chosen."""

from collections.abc import Callable
from importlib import import_module

from torch import Tensor

from llamita.errors import UnsupportedError

# attend(q, k, v, mask, *, scale, dropout): q (B, N, T, H), k and v (B, K, S, H) -> (B, T, N, H)
Backend = Callable[..., Tensor]

BACKENDS = {
    "eager": "llamita.attention.eager",
    "sdpa": "llamita.attention.sdpa",
    "flex": "llamita.attention.flex",
    "flash_attention_2": "llamita.attention.flash",
}


def backend(name: str) -> Backend:
    """The attention function of this name; raises UnsupportedError (a ValueError) for an unknown one."""
    if name not in BACKENDS:
        raise UnsupportedError(f'attn_implementation="{name}" is not supported: use one of {", ".join(BACKENDS)}')
    return import_module(BACKENDS[name]).attend
