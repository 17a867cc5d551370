"""A tokenizer as a GGUF file's metadata: tokens, types, merges or scores, and what the special ones are for."""

import json
from collections.abc import Mapping
from typing import Any

from llamita.errors import UnsupportedError
from llamita.files.gguf_types import Field
from llamita.tokenizer.gguf import BYTE, CONTROL, ENDS, NORMAL, PREPENDING, UNKNOWN, UNUSED, USER_DEFINED
from llamita.tokenizer.gguf_pre import name_of, splits_of
from llamita.tokenizer.gguf_scores import merges_of, scores_of
from llamita.tokenizer.protocol import Tokenizer

Metadata = dict[str, Field]
Content = Mapping[str, Any]


def tokenizer_to_gguf(tokenizer: Tokenizer, vocab_size: int) -> Metadata:
    """The metadata from which llama.cpp, and we, make a tokenizer of the same ids.

    vocab_size: the rows of the embedding; those without a token get one that is never used.
    Raises UnsupportedError for a tokenizer that no kind of GGUF's describes.
    """
    content = json.loads(tokenizer.to_json())
    model = content["model"]
    if model.get("type") != "BPE":
        raise UnsupportedError(f"a tokenizer of type {model.get('type')} cannot be put into a GGUF file: only BPE can")
    is_sentence_piece = bool(model.get("byte_fallback"))
    tokens, types = _tokens(tokenizer, content, vocab_size)
    described = _sentence_piece(content, tokens, types) if is_sentence_piece else _byte_level(content)
    return {
        **described,
        "tokenizer.ggml.tokens": Field("string", tokens),
        "tokenizer.ggml.token_type": Field("int32", types),
        **_roles(tokenizer, content),
        **_around(tokenizer),
        **_templates(tokenizer),
    }


def _tokens(tokenizer: Tokenizer, content: Content, vocab_size: int) -> tuple[list[Any], list[Any]]:
    added = {token["id"]: CONTROL if token["special"] else USER_DEFINED for token in content["added_tokens"]}
    unknown = content["model"].get("unk_token")
    tokens, types = [], []
    for number in range(max(vocab_size, tokenizer.vocab_size)):
        token = tokenizer.id_to_token(number)
        if token is None:
            kind = UNUSED
        elif token == unknown:
            kind = UNKNOWN
        elif content["model"].get("byte_fallback") and _is_byte(token):
            kind = BYTE
        else:
            kind = added.get(number, NORMAL)
        tokens.append(f"[PAD{number}]" if token is None else token)
        types.append(kind)
    return tokens, types


def _is_byte(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _pairs(content: Content) -> list[tuple[str, str]]:
    merges = (merge.split(" ", 1) if isinstance(merge, str) else merge for merge in content["model"]["merges"])
    return [(left, right) for left, right in merges]


def _byte_level(content: Content) -> Metadata:
    model, pairs = content["model"], _pairs(content)
    normalizer = content.get("normalizer") or {}
    splits = splits_of(content.get("pre_tokenizer") or {})
    odd = [key for key in ("unk_token", "continuing_subword_prefix", "end_of_word_suffix") if model.get(key)]
    name = None
    if splits is not None and not odd:
        ignores = bool(model.get("ignore_merges"))
        name = name_of(splits, ignores_merges=ignores, normalizer=normalizer.get("type"))
        if name is None and not pairs and not normalizer:
            name = "gpt-2"  # where nothing is merged, it does not matter where text is cut
    if name is None:
        raise UnsupportedError(
            "the tokenizer cuts text in a way that GGUF has no name for: only Llama 3's, GPT-2's and their like can be "
            "written"
        )
    return {
        "tokenizer.ggml.model": Field("string", "gpt2"),
        "tokenizer.ggml.pre": Field("string", name),
        "tokenizer.ggml.merges": Field("string", [f"{left} {right}" for left, right in pairs]),
    }


def _sentence_piece(content: Content, tokens: list[str], types: list[int]) -> Metadata:
    pairs = _pairs(content)
    scores = scores_of(tokens, pairs)
    rated = {token: score for token, kind, score in zip(tokens, types, scores, strict=True) if kind == NORMAL}
    if merges_of(rated) != pairs:
        raise UnsupportedError(
            "the tokenizer's merges are not SentencePiece's: no scores of its tokens say the same, as GGUF would need"
        )
    scheme = _scheme(content)
    return {
        "tokenizer.ggml.model": Field("string", "llama"),
        "tokenizer.ggml.pre": Field("string", "default"),
        "tokenizer.ggml.scores": Field("float32", list(scores)),
        "tokenizer.ggml.add_space_prefix": Field("bool", scheme != "never"),
        **({PREPENDING: Field("string", "first")} if scheme == "first" else {}),
    }


def _scheme(content: Content) -> str:
    """Where a space is put before a text: "always", "first" or "never"."""
    normalizer, cutter = content.get("normalizer"), content.get("pre_tokenizer")
    if cutter is not None and cutter.get("type") == "Metaspace" and not cutter.get("split", True) and not normalizer:
        return cutter.get("prepend_scheme", "always")
    steps = (normalizer or {}).get("normalizers", [normalizer])
    kinds = [step.get("type") if step else None for step in steps]
    if cutter is not None or kinds not in (["Prepend", "Replace"], ["Replace"]):
        raise UnsupportedError("the tokenizer treats spaces in a way that GGUF has no name for: it cannot be written")
    return "always" if "Prepend" in kinds else "never"


def _roles(tokenizer: Tokenizer, content: Content) -> Metadata:
    unknown = content["model"].get("unk_token")
    ends = tokenizer.eos_token_ids
    named = {tokenizer.id_to_token(i): i for i in ends}
    roles = {
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "eot": named.get("<|eot_id|>"),
        "eom": named.get("<|eom_id|>"),
        "unknown": tokenizer.token_to_id(unknown) if unknown else None,
        "padding": tokenizer.pad_token_id,
    }
    fields = {f"tokenizer.ggml.{role}_token_id": Field("uint32", i) for role, i in roles.items() if i is not None}
    guessed = {i for text in ENDS if (i := tokenizer.token_to_id(text)) is not None}
    if set(ends) - guessed - {roles["eos"]}:
        fields["llamita.tokenizer.eos_token_ids"] = Field("uint32", list(ends))
    return fields


def _around(tokenizer: Tokenizer) -> Metadata:
    """Whether BOS and EOS go around a text."""
    plain, whole = tokenizer.encode("a", add_special_tokens=False), tokenizer.encode("a")
    for adds_bos in (False, True):
        for adds_eos in (False, True):
            bos, eos = tokenizer.bos_token_id if adds_bos else None, tokenizer.eos_token_id if adds_eos else None
            if whole == [*([] if bos is None else [bos]), *plain, *([] if eos is None else [eos])]:
                return {
                    "tokenizer.ggml.add_bos_token": Field("bool", adds_bos),
                    "tokenizer.ggml.add_eos_token": Field("bool", adds_eos),
                }
    raise UnsupportedError("the tokenizer puts more than BOS and EOS around a text: GGUF has no place for that")


def _templates(tokenizer: Tokenizer) -> Metadata:
    templates = dict(tokenizer.chat_templates)
    fields: Metadata = {}
    if tokenizer.chat_template is not None:
        fields["tokenizer.chat_template"] = Field("string", tokenizer.chat_template)
    named = {name: template for name, template in templates.items() if template != tokenizer.chat_template}
    if named:
        fields["tokenizer.chat_templates"] = Field("string", list(named))
        fields |= {f"tokenizer.chat_template.{name}": Field("string", text) for name, text in named.items()}
    return fields
