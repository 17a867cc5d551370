"""A tokenizer from a GGUF file's metadata, as a tokenizer.json would have it."""

import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llamita.checks import quoted
from llamita.errors import BrokenFileError, UnsupportedError
from llamita.files.gguf_types import Field
from llamita.tokenizer.gguf_pre import CUTS, SYNONYMS, Cut, pre_tokenizer
from llamita.tokenizer.gguf_scores import merges_of
from llamita.tokenizer.load import assembled, parsed
from llamita.tokenizer.protocol import Tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # the types of tokens
# Control tokens that end an answer wherever they are, since files name at most three.
ENDS = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>",
    "<|end_of_text|>",
)  # fmt: skip
PREPENDING = "llamita.tokenizer.prepend_scheme"  # ours: "first" where only the beginning of a text gets a space
_PADDING = re.compile(r"\[PAD\d+\]")
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}


def tokenizer_from_gguf(metadata: Mapping[str, Field], source: Path) -> Tokenizer:
    """The tokenizer that a GGUF file describes: byte-level BPE ("gpt2") or SentencePiece's ("llama").

    Raises BrokenFileError for one that contradicts itself, UnsupportedError for another kind or an unknown way of
    cutting text.
    """
    facts = _Facts(metadata, source)
    library = parsed(json.dumps(_content(facts)), source)
    bos, eos = facts.token("bos"), facts.token("eos")
    return assembled(
        library,
        bos=bos,
        eos=_ends(facts),
        pad=facts.token("padding"),
        prefix=[bos] if bos is not None and facts.adds_bos else [],
        suffix=[eos] if eos is not None and facts.adds_eos else [],
        templates=_templates(facts),
    )


class _Facts:
    """What a file says of its tokenizer, each value checked to be of its kind."""

    def __init__(self, metadata: Mapping[str, Field], source: Path) -> None:
        self._metadata, self.source = metadata, source
        self.model = self._one("tokenizer.ggml.model", str, "none")
        if self.model not in ("gpt2", "llama"):
            raise UnsupportedError(
                f"{source} has a tokenizer of kind {quoted(self.model)}: only gpt2 and llama are known"
            )
        tokens: list[str] = self._many("tokenizer.ggml.tokens", str)
        types: list[int] = self._many("tokenizer.ggml.token_type", int) or [NORMAL] * len(tokens)
        self.scores: list[float] = self._many("tokenizer.ggml.scores", float) or [0.0] * len(tokens)
        if not tokens or len(types) < len(tokens) or len(self.scores) < len(tokens):
            self.refuse(f"{len(tokens)} tokens, {len(types)} types and {len(self.scores)} scores")
        while tokens and types[len(tokens) - 1] == UNUSED and _PADDING.fullmatch(tokens[-1]):
            tokens.pop()  # rows of the embedding without a token, which the format wants named
        if len(set(tokens)) != len(tokens):
            self.refuse("a token twice")
        self.tokens, self.types = tokens, types[: len(tokens)]
        self.merges: list[str] = self._many("tokenizer.ggml.merges", str)
        self.cut = self._cut() if self.model == "gpt2" else Cut((), adds_bos=True)
        self.adds_bos: bool = self._one("tokenizer.ggml.add_bos_token", bool, self.cut.adds_bos)
        self.adds_eos: bool = self._one("tokenizer.ggml.add_eos_token", bool, False)
        self.adds_space: bool = self._one("tokenizer.ggml.add_space_prefix", bool, True)
        self.prepends: str = self._one(PREPENDING, str, "always")

    def token(self, role: str) -> int | None:
        """The id of a role; None where the file names none or one that is not there."""
        number = self._one(f"tokenizer.ggml.{role}_token_id", int, -1)
        return number if 0 <= number < len(self.tokens) else None

    def template(self, key: str) -> str | None:
        """A chat template."""
        return self._one(key, str, None)

    def names(self, key: str) -> list[str]:
        """A list of names."""
        return self._many(key, str)

    def numbers(self, key: str) -> list[int]:
        """A list of ids."""
        return [number for number in self._many(key, int) if 0 <= number < len(self.tokens)]

    def refuse(self, what: str) -> None:
        """Say that the tokenizer contradicts itself."""
        raise BrokenFileError(f"{self.source} has a damaged tokenizer ({what}): download it again")

    def _cut(self) -> Cut:
        name = self._one("tokenizer.ggml.pre", str, None)
        if name is None:
            warnings.warn(f"{self.source} does not say how to cut text: its words may be split wrongly", stacklevel=4)
        name = SYNONYMS.get(name or "default", name or "default")
        if name not in CUTS:
            known = ", ".join([*CUTS, *SYNONYMS])
            raise UnsupportedError(f"{self.source} cuts text in the way {quoted(name)}: known are {known}")
        return CUTS[name]

    def _one(self, key: str, kind: type, default: Any) -> Any:
        value = self._metadata[key].value if key in self._metadata else default
        if value is not default and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
            self.refuse(f"{key} is no {kind.__name__}")
        return value

    def _many(self, key: str, kind: type) -> list[Any]:
        values = self._metadata[key].value if key in self._metadata else []
        if not isinstance(values, list) or (
            values and not isinstance(values[0], kind | int if kind is float else kind)
        ):
            self.refuse(f"{key} is no list of {kind.__name__}")
        return values if isinstance(values, list) else []


def _content(facts: _Facts) -> dict[str, Any]:
    """The content of a tokenizer.json."""
    content = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": _added(facts)}
    content |= _byte_level(facts) if facts.model == "gpt2" else _sentence_piece(facts)
    return content | {"post_processor": _around(facts)}


def _added(facts: _Facts) -> list[dict[str, Any]]:
    kinds = {CONTROL: True, USER_DEFINED: False}
    if facts.model == "llama":
        kinds[UNKNOWN] = True
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return [
        {"id": number, "content": token, **flags, "special": kinds[kind]}
        for number, (token, kind) in enumerate(zip(facts.tokens, facts.types, strict=True))
        if kind in kinds
    ]


def _byte_level(facts: _Facts) -> dict[str, Any]:
    pairs = [merge.partition(" ") for merge in facts.merges]
    return {
        "normalizer": {"type": facts.cut.normalizer} if facts.cut.normalizer else None,
        "pre_tokenizer": pre_tokenizer(facts.cut),
        "decoder": _BYTE_LEVEL,
        "model": _bpe(
            facts.tokens, [[left, right] for left, _, right in pairs], ignore_merges=facts.cut.ignores_merges
        ),
    }


def _sentence_piece(facts: _Facts) -> dict[str, Any]:
    rated = zip(facts.tokens, facts.types, facts.scores, strict=False)
    pieces = {token: score for token, kind, score in rated if kind == NORMAL}
    unknown = facts.token("unknown")
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if facts.adds_space:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        **_spaces(facts),
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": _bpe(
            facts.tokens,
            [list(pair) for pair in merges_of(pieces)],
            unk_token=facts.tokens[0 if unknown is None else unknown],
            fuse_unk=True,
            byte_fallback=True,
        ),
    }


def _spaces(facts: _Facts) -> dict[str, Any]:
    """Spaces become U+2581. One more is added where a text begins: after every control token, or only at the start."""
    if facts.adds_space and facts.prepends == "first":
        scheme = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
        return {"normalizer": None, "pre_tokenizer": scheme}
    steps = [{"type": "Prepend", "prepend": "▁"}, _REPLACE] if facts.adds_space else [_REPLACE]
    return {"normalizer": {"type": "Sequence", "normalizers": steps}, "pre_tokenizer": None}


def _bpe(tokens: list[str], merges: list[list[str]], **options: Any) -> dict[str, Any]:
    usual = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
    }
    return {**usual, **options, "vocab": {token: number for number, token in enumerate(tokens)}, "merges": merges}


def _around(facts: _Facts) -> dict[str, Any] | None:
    """The post-processor that puts BOS and EOS around a text."""
    bos = facts.token("bos") if facts.adds_bos else None
    eos = facts.token("eos") if facts.adds_eos else None
    if bos is None and eos is None:
        return None

    def steps(name: str, number: int) -> list[dict[str, Any]]:
        begin, end = (
            [{"SpecialToken": {"id": facts.tokens[i], "type_id": number}}] if i is not None else [] for i in (bos, eos)
        )
        return [*begin, {"Sequence": {"id": name, "type_id": number}}, *end]

    named = {facts.tokens[i]: i for i in (bos, eos) if i is not None}
    return {
        "type": "TemplateProcessing",
        "single": steps("A", 0),
        "pair": [*steps("A", 0), *steps("B", 1)],
        "special_tokens": {token: {"id": token, "ids": [i], "tokens": [token]} for token, i in named.items()},
    }


def _ends(facts: _Facts) -> list[int]:
    """Every id that ends an answer, the tokenizer's own end first."""
    named = [facts.token(role) for role in ("eos", "eot", "eom")]
    found = [i for i, token in enumerate(facts.tokens) if facts.types[i] == CONTROL and token in ENDS]
    ours = facts.numbers("llamita.tokenizer.eos_token_ids")
    return list(dict.fromkeys(i for i in (*named, *ours, *found) if i is not None))


def _templates(facts: _Facts) -> dict[str, str]:
    keys = {"default": "tokenizer.chat_template"}
    keys |= {name: f"tokenizer.chat_template.{name}" for name in facts.names("tokenizer.chat_templates")}
    templates = {name: facts.template(key) for name, key in keys.items()}
    return {name: template for name, template in templates.items() if template is not None}
