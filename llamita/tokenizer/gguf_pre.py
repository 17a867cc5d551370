"""How byte-level tokenizers cut text before they merge, by the names that GGUF files have for it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_GPT_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_REST_WITH_SLASH = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LOWER_LAST = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
_UPPER_FIRST = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"


@dataclass(frozen=True)
class Cut:
    """Regular expressions, each cutting what the one before left whole, and the habits that come with the name.

    ignores_merges: a word that is a token is taken without merging. adds_bos: unless the file says otherwise.
    """

    splits: tuple[str, ...]
    ignores_merges: bool = False
    adds_bos: bool = False
    normalizer: str | None = None


# The first that fits is the one that is written; the names are llama.cpp's.
CUTS: Mapping[str, Cut] = {
    "llama-bpe": Cut((_WORDS + r"\p{N}{1,3}" + _REST,), ignores_merges=True, adds_bos=True),
    "smaug-bpe": Cut((_WORDS + r"\p{N}{1,3}" + _REST,)),
    "gpt-2": Cut((_GPT_2,)),
    "smollm": Cut((r"\p{N}", _GPT_2)),
    "qwen2": Cut((_WORDS + r"\p{N}" + _REST,), normalizer="NFC"),
    "stablelm2": Cut((_WORDS + r"\p{N}" + _REST,)),
    "tekken": Cut(
        (_LOWER_LAST + "|" + _UPPER_FIRST + r"|\p{N}" + _REST_WITH_SLASH,), ignores_merges=True, adds_bos=True
    ),
    "gpt-4o": Cut((_LOWER_LAST + _ENDINGS + "|" + _UPPER_FIRST + _ENDINGS + r"|\p{N}{1,3}" + _REST_WITH_SLASH,)),
    "default": Cut((r"[\p{P}\$\+<=>\^~\|]+", _GPT_2, r"\p{N}+", "[0-9][0-9][0-9]")),
}
SYNONYMS: Mapping[str, str] = {
    **dict.fromkeys(("llama3", "llama-v3", "falcon3", "pixtral", "lfm2"), "llama-bpe"),
    "dbrx": "smaug-bpe",
    **dict.fromkeys(("phi-2", "mpt", "olmo", "jais", "exaone4"), "gpt-2"),
    **dict.fromkeys(("starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), "smollm"),
    **dict.fromkeys(("deepseek-r1-qwen", "megrez", "hunyuan"), "qwen2"),
    "llama4": "gpt-4o",
}


def pre_tokenizer(cut: Cut) -> dict[str, Any]:
    """The pre_tokenizer of a tokenizer.json that cuts so."""
    splits = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in cut.splits
    ]
    letters = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [*splits, letters]}


def splits_of(pre_tokenizer: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The cuts of a tokenizer.json's byte-level pre_tokenizer; None for one that does anything else."""
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    *before, last = steps
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        return None
    splits = [_split(step) for step in before]
    if None in splits:
        return None
    own = (_GPT_2,) if last.get("use_regex", True) else ()
    return (*(split for split in splits if split), *own)


def _split(step: Mapping[str, Any]) -> str | None:
    if step.get("type") == "Digits" and step.get("individual_digits"):
        return r"\p{N}"
    is_plain = step.get("type") == "Split" and step.get("behavior") == "Isolated" and not step.get("invert")
    return step["pattern"].get("Regex") if is_plain else None


def name_of(splits: tuple[str, ...], *, ignores_merges: bool, normalizer: str | None) -> str | None:
    """The name under which a tokenizer that cuts so is known; None where it has none."""
    wanted = (splits, ignores_merges, normalizer)
    known = ((cut.splits, cut.ignores_merges, cut.normalizer) for cut in CUTS.values())
    return next((name for name, habits in zip(CUTS, known, strict=True) if habits == wanted), None)
