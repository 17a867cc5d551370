"""transformers' generation flags: which exist here, their defaults, and what a checkpoint says of them."""

import difflib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from llamita.config import LlamaConfig
from llamita.errors import UnsupportedError, UsageError
from llamita.generation.sampling import PerRow

DEFAULT_NEW_TOKENS = 20  # transformers' default max_length, which it counts from the prompt's end

# Flags of transformers that are taken only where they change nothing, with the value at which they do not.
NEUTRAL: Mapping[str, Any] = {
    "num_beams": 1, "num_return_sequences": 1, "min_length": 0, "min_new_tokens": None, "min_p": None, "top_h": None,
    "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0,
    "bad_words_ids": None, "sequence_bias": None, "suppress_tokens": None, "begin_suppress_tokens": None,
    "forced_bos_token_id": None, "forced_eos_token_id": None, "exponential_decay_length_penalty": None,
    "guidance_scale": None, "renormalize_logits": False, "output_scores": False, "output_logits": False,
    "return_dict_in_generate": False, "max_time": None,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to continue: transformers' flags by their names and with their defaults, and a seed.

    Of `max_new_tokens` and `max_length` (which counts the prompt) the first wins; with neither it is 20 new tokens.
    temperature, top_k, top_p and seed: one number, or one a row.
    """

    max_new_tokens: int | None = None
    max_length: int | None = None
    do_sample: bool = False
    temperature: PerRow | None = 1.0
    top_k: PerRow | None = 50
    top_p: PerRow | None = 1.0
    seed: int | Sequence[int] | None = None
    eos_token_id: int | Sequence[int] | None = None
    pad_token_id: int | None = None
    stop_strings: str | Sequence[str] | None = None
    use_cache: bool = True

    @property
    def eos_token_ids(self) -> list[int]:
        """The end tokens as a list, whether one, several or none are given."""
        eos = self.eos_token_id
        return [] if eos is None else [eos] if isinstance(eos, int) else list(eos)

    @property
    def padding(self) -> int | None:
        """What stands behind the end of a row: the padding token, else the first end token."""
        pad = self.pad_token_id
        return pad if pad is not None and pad >= 0 else next(iter(self.eos_token_ids), None)

    @property
    def stops(self) -> list[str]:
        """The stop strings as a list; raises UsageError for an empty one."""
        stops = [self.stop_strings] if isinstance(self.stop_strings, str) else list(self.stop_strings or ())
        if not all(stops):
            raise UsageError("a stop string is empty: it would stop before the first token, leave it out")
        return stops

    def limit(self, prompt: int, embedded: int, config: LlamaConfig) -> int:
        """How many tokens to add to `prompt` ids, or to embeddings of `embedded` tokens: transformers' rule.

        Raises UsageError where that is none.
        """
        if self.max_new_tokens is not None:
            limit = self.max_new_tokens
        elif self.max_length is not None:
            limit = self.max_length - max(prompt, embedded)
        else:
            limit = min(prompt + DEFAULT_NEW_TOKENS, config.max_position_embeddings) - prompt
        if limit < 1:
            raise UsageError(
                f"the input has {max(prompt, embedded)} tokens, and max_length or max_new_tokens leaves no room for "
                "another: raise it"
            )
        return limit


NAMES = tuple(item.name for item in fields(Options))


def resolve(flags: Mapping[str, Any], *, checkpoint: Mapping[str, Any], config: LlamaConfig) -> Options:
    """The flags of a call over those of the checkpoint's generation_config.json, or of its config without one.

    Raises UsageError for an unknown flag, naming the nearest; UnsupportedError for one that does nothing here yet.
    """
    for name, value in flags.items():
        if name not in NAMES:
            _refuse(name, value)
    if not checkpoint:
        checkpoint = {"eos_token_id": config.eos_token_id, "pad_token_id": config.pad_token_id}
    ignored = [name for name in NEUTRAL if name in checkpoint and not _is_neutral(name, checkpoint[name])]
    if ignored:
        warnings.warn(f"the checkpoint asks for {', '.join(ignored)}, which llamita leaves out", stacklevel=3)
    defaults = {name: checkpoint[name] for name in NAMES if checkpoint.get(name) is not None}
    given = {name: value for name, value in flags.items() if name in NAMES}
    return Options(**{**defaults, **given})


def _refuse(name: str, value: Any) -> None:
    if name in NEUTRAL:
        if not _is_neutral(name, value):
            raise UnsupportedError(f"{name}={value!r} is not supported: leave it at {NEUTRAL[name]!r}")
        return
    nearest = difflib.get_close_matches(name, [*NAMES, *NEUTRAL], n=1, cutoff=0.0)[0]
    raise UsageError(f"generate has no flag {name!r}: did you mean {nearest!r}?")


def _is_neutral(name: str, value: Any) -> bool:
    return value is None or value == NEUTRAL[name]
