"""How tokens attend: interchangeable backends of one signature, each imported only when chosen."""

from collections.abc import Callable

from torch import Tensor

from llamita.errors import UnsupportedError

# attend(q, k, v, mask, *, scale, dropout): q (B, N, T, H), k and v (B, K, S, H) -> (B, T, N, H)
Backend = Callable[..., Tensor]


# Import statements, not import_module: torch.compile traces through these alone.
def _eager() -> Backend:
    from llamita.attention.eager import attend

    return attend


def _sdpa() -> Backend:
    from llamita.attention.sdpa import attend

    return attend


def _flex() -> Backend:
    from llamita.attention.flex import attend

    return attend


def _flash() -> Backend:
    from llamita.attention.flash import attend

    return attend


def _fixed() -> Backend:
    from llamita.attention.fixed import attend

    return attend


BACKENDS: dict[str, Callable[[], Backend]] = {
    "eager": _eager,
    "sdpa": _sdpa,
    "flex": _flex,
    "flash_attention_2": _flash,
    "fixed": _fixed,
}


def backend(name: str) -> Backend:
    """The attention function of this name; raises UnsupportedError (a ValueError) for an unknown one."""
    if name not in BACKENDS:
        raise UnsupportedError(f'attn_implementation="{name}" is not supported: use one of {", ".join(BACKENDS)}')
    return BACKENDS[name]()
