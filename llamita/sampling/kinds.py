"""What the settings must be that are no numbers: token ids, lists of them, tables, functions."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from numbers import Integral, Real
from typing import Any

from torch import Tensor

from llamita.checks import quoted
from llamita.errors import UsageError
from llamita.sampling.per_row import EachRow
from llamita.sampling.watermark import WatermarkingConfig


def check_kind(name: str, value: Any) -> None:
    """Raise UsageError for a value that is not of the setting's kind; None passes, and so does it for single rows."""
    is_right, remedy = KINDS[name]
    for one in value if isinstance(value, EachRow) else (value,):
        if one is not None and not is_right(one):
            raise UsageError(f"{name} is {quoted(one)}: {remedy}")


def check_functions(name: str, value: Any) -> tuple[Any, ...]:
    """A list of functions as a tuple. Raises UsageError for anything else."""
    if not isinstance(value, Sequence) or not all(map(callable, value)):
        raise UsageError(f"{name} is {quoted(value)}: give a list of functions")
    return tuple(value)


def _is_token(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_list_of(is_one: Callable[[Any], bool], value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes) and all(map(is_one, value))


_are_tokens = partial(_is_list_of, _is_token)


def _is_key(value: Any) -> bool:
    return _is_token(value) or (isinstance(value, str) and value.isascii() and value.removeprefix("-").isdigit())


def _is_bias(pair: Any) -> bool:
    return isinstance(pair, Sequence) and len(pair) == 2 and _are_tokens(pair[0]) and isinstance(pair[1], Real)


def _are_biases(value: Any) -> bool:
    pairs = value.items() if isinstance(value, Mapping) else value
    return isinstance(value, Mapping | Sequence) and all(map(_is_bias, pairs))


def _is_table(value: Any) -> bool:
    return isinstance(value, Mapping) and all(map(_is_key, value))


_TOKENS = (lambda value: (type(value) is int) or _are_tokens(value), "give a token id, or a list of them")
_TRUTH = (lambda value: not isinstance(value, Tensor | list), "give True or False")  # a list of False is true
KINDS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "do_sample": _TRUTH,
    "remove_invalid_values": _TRUTH,
    "renormalize_logits": _TRUTH,
    "suppress_tokens": _TOKENS,
    "begin_suppress_tokens": _TOKENS,
    "forced_bos_token_id": _TOKENS,
    "forced_eos_token_id": _TOKENS,
    "eos_token_id": _TOKENS,
    "bad_words_ids": (partial(_is_list_of, _are_tokens), "give a list of lists of token ids"),
    "sequence_bias": (_are_biases, "give a list of pairs of token ids and a number, such as [[[5, 6], -2.0]]"),
    "logit_bias": (_is_table, "give a dictionary from token ids to numbers"),
    "watermarking_config": (
        lambda value: isinstance(value, Mapping | WatermarkingConfig) or hasattr(value, "to_dict"),
        "give a WatermarkingConfig, or a dictionary of its fields",
    ),
    "prefix_allowed_tokens_fn": (callable, "give a function of a row's number and its token ids"),
}
