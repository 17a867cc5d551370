"""Tokenizers into GGUF metadata and back: the same ids for the same text, and clear refusals."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from llamita.errors import BrokenFileError, UnsupportedError
from llamita.files.gguf import GgufFile
from llamita.files.gguf_types import Field
from llamita.files.gguf_write import write_gguf
from llamita.tokenizer.gguf import tokenizer_from_gguf
from llamita.tokenizer.gguf_scores import merges_of, scores_of
from llamita.tokenizer.gguf_write import tokenizer_to_gguf
from llamita.tokenizer.load import assembled, load_tokenizer
from llamita.tokenizer.protocol import Tokenizer
from tests.unit.tokenizer.tiny import llama_2_library, llama_3_library

TEXTS = [
    "",
    " ",
    "a",
    "Once upon a time there was a little llama who lived on a high mountain.",
    "  two spaces,   three,\t\ttabs \n\n\n lines \r\n and an end   ",
    "1 12 123 1234 12345 3.14159 1,000,000 ٣٤٥ ५६",
    "I'm you'RE they'Ve it'S 'tis rock'n'roll",
    "Grüße aus München, ça va? Ωμέγα Привет мир שלום مرحبا",
    "你好世界，こんにちは 안녕하세요 नमस्ते ไทย",
    "emoji 😀😃 👩‍👩‍👧‍👦 🇩🇪 e\u0301 \u200b\ufeff zero",
    "def add(a, b):\n    return a + b\n\n\nprint(add(1, 22))",
    "looks <|eot_id|> like <|begin_of_text|> special <|start_header_id|>user<|end_header_id|>",
    "<s> and </s> and <unk> and <0x0A> ▁ too",
    "<|begin_of_text|><|eot_id|>",
]


def assembled_from(library: tokenizers.Tokenizer, bos: str, *ends: str, **changes: Any) -> Tokenizer:
    number = library.token_to_id(bos)
    given: dict[str, Any] = {
        "bos": number,
        "eos": [library.token_to_id(end) for end in ends],
        "pad": None,
        "prefix": [number],
        "suffix": [],
        "templates": {"default": "{{ bos_token }}{{ messages }}"},
    }
    return assembled(library, **(given | changes))


def sentence_piece(normalizer: Any = None, scheme: str | None = None) -> tokenizers.Tokenizer:
    """Llama 2's kind, its merges in the order of scores as those of released checkpoints are."""
    content = json.loads(llama_2_library().to_str())
    vocabulary = content["model"]["vocab"]
    pieces = {token: -float(i) for token, i in vocabulary.items() if i >= 259}
    content["model"]["merges"] = [list(pair) for pair in merges_of(pieces)]
    if normalizer is not None:
        content["normalizer"], content["pre_tokenizer"] = normalizer, None
    if scheme is not None:
        content["pre_tokenizer"]["prepend_scheme"] = scheme
        content["decoder"]["decoders"].pop()  # without a space put in front, none is taken off
    return tokenizers.Tokenizer.from_str(json.dumps(content))


LEGACY = {
    "type": "Sequence",
    "normalizers": [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ],
}


def every_kind(cria_path: Path) -> dict[str, Tokenizer]:
    return {
        "cria": load_tokenizer(cria_path),
        "llama 3": assembled_from(llama_3_library(), "<|begin_of_text|>", "<|eot_id|>", "<|eom_id|>"),
        "llama 2, first": assembled_from(sentence_piece(), "<s>", "</s>"),
        "llama 2, always": assembled_from(sentence_piece(LEGACY), "<s>", "</s>", suffix=[2]),
        "llama 2, never": assembled_from(sentence_piece(scheme="never"), "<s>", "</s>", prefix=[]),
    }


def through_a_file(tokenizer: Tokenizer, path: Path, *, vocab_size: int = 0) -> Tokenizer:
    write_gguf(path, tokenizer_to_gguf(tokenizer, vocab_size or tokenizer.vocab_size), {})
    return tokenizer_from_gguf(GgufFile(path).metadata, path)


@pytest.mark.parametrize(
    "name",
    [
        "cria",
        "llama 3",
        "llama 2, first",
        "llama 2, always",
        "llama 2, never",
    ],
)
def test_the_same_tokenizer_comes_back(name: str, cria_path: Path, tmp_path: Path) -> None:
    before = every_kind(cria_path)[name]
    after = through_a_file(before, tmp_path / "t.gguf", vocab_size=before.vocab_size + 3)
    for text in TEXTS:
        for parse_special in (False, True):
            ids = before.encode(text, parse_special=parse_special)
            assert after.encode(text, parse_special=parse_special) == ids, text
            assert after.decode(ids) == before.decode(ids)
        assert after.decode(ids, skip_special_tokens=False) == before.decode(ids, skip_special_tokens=False)
    assert after.vocab_size == before.vocab_size
    assert (after.bos_token_id, after.eos_token_id) == (before.bos_token_id, before.eos_token_id)
    assert set(before.eos_token_ids) <= set(after.eos_token_ids)
    assert after.pad_token_id == before.pad_token_id
    assert after.special_ids == before.special_ids
    assert after.chat_templates == before.chat_templates


def test_cria_says_what_llama_cpp_needs(cria_path: Path) -> None:
    fields = tokenizer_to_gguf(load_tokenizer(cria_path), 2048)
    assert fields["tokenizer.ggml.model"] == Field("string", "gpt2")
    assert fields["tokenizer.ggml.pre"] == Field("string", "llama-bpe")
    assert fields["tokenizer.ggml.add_bos_token"] == Field("bool", True)
    assert fields["tokenizer.ggml.eot_token_id"] == Field("uint32", 2046)
    types = fields["tokenizer.ggml.token_type"].value
    assert isinstance(types, list)
    assert types == [1] * 2040 + [3] * 8


def test_every_end_survives(cria_path: Path, tmp_path: Path) -> None:
    library = llama_3_library()
    odd = assembled_from(library, "<|begin_of_text|>", "<|python_tag|>", "<|eot_id|>", "<|start_header_id|>")
    after = through_a_file(odd, tmp_path / "t.gguf")
    assert after.eos_token_id == odd.eos_token_id
    assert set(odd.eos_token_ids) <= set(after.eos_token_ids)
    cria = load_tokenizer(cria_path)
    assert set(through_a_file(cria, tmp_path / "c.gguf").eos_token_ids) == {2041, 2045, 2046}


def test_several_templates(tmp_path: Path) -> None:
    templates = {"default": "a", "tool_use": "b"}
    tokenizer = assembled_from(llama_3_library(), "<|begin_of_text|>", "<|eot_id|>", templates=templates)
    assert through_a_file(tokenizer, tmp_path / "t.gguf").chat_templates == templates


def changed(library: tokenizers.Tokenizer, **parts: Any) -> Tokenizer:
    content = json.loads(library.to_str())
    content["model"].update(parts.pop("model", {}))
    return assembled_from(
        tokenizers.Tokenizer.from_str(json.dumps({**content, **parts})), "<|begin_of_text|>", "<|eot_id|>"
    )


def test_the_cut_decides_the_name() -> None:
    def name(**parts: Any) -> object:
        tokenizer = changed(llama_3_library(), **parts)
        return tokenizer_to_gguf(tokenizer, tokenizer.vocab_size)["tokenizer.ggml.pre"].value

    letters = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    digits = {"type": "Digits", "individual_digits": True}
    assert name() == "llama-bpe"
    assert name(model={"ignore_merges": False}) == "smaug-bpe"
    assert name(pre_tokenizer=letters, model={"ignore_merges": False}) == "gpt-2"
    smollm = {"type": "Sequence", "pretokenizers": [digits, letters]}
    assert name(pre_tokenizer=smollm, model={"ignore_merges": False}) == "smollm"


@pytest.mark.parametrize(
    "parts",
    [
        {"pre_tokenizer": None},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}},
        {"normalizer": {"type": "Lowercase"}},
        {
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Split", "pattern": {"Regex": "x"}, "behavior": "Isolated", "invert": False},
                    {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
                ],
            }
        },
    ],
)
def test_other_cuts_are_refused(parts: dict[str, Any]) -> None:
    tokenizer = changed(llama_3_library(), **parts)
    with pytest.raises(UnsupportedError, match="GGUF has no name for"):
        tokenizer_to_gguf(tokenizer, tokenizer.vocab_size)


def test_merges_that_no_scores_say_are_refused() -> None:
    tokenizer = assembled_from(llama_2_library(), "<s>", "</s>")
    with pytest.raises(UnsupportedError, match="no scores of its tokens say the same"):
        tokenizer_to_gguf(tokenizer, tokenizer.vocab_size)


def test_scores_and_merges_say_the_same() -> None:
    scores = {"a": -9.0, "b": -8.0, "ab": -1.0, "aba": -3.0, "ba": -2.0, "abab": -2.5}
    merges = merges_of(scores)
    assert merges == [("a", "b"), ("b", "a"), ("aba", "b"), ("ab", "ab"), ("ab", "a"), ("a", "ba")]
    tokens = list(scores)
    assert merges_of(dict(zip(tokens, scores_of(tokens, merges), strict=True))) == merges


GOOD: dict[str, Field] = {
    "tokenizer.ggml.model": Field("string", "gpt2"),
    "tokenizer.ggml.pre": Field("string", "llama-bpe"),
    "tokenizer.ggml.tokens": Field("string", ["a", "b", "ab", "<s>"]),
    "tokenizer.ggml.token_type": Field("int32", [1, 1, 1, 3]),
    "tokenizer.ggml.merges": Field("string", ["a b"]),
    "tokenizer.ggml.bos_token_id": Field("uint32", 3),
}


def test_the_good_one_is_read(tmp_path: Path) -> None:
    assert tokenizer_from_gguf(GOOD, tmp_path).encode("ab") == [3, 2]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"tokenizer.ggml.model": Field("string", "bert")}, UnsupportedError, "kind 'bert'"),
        ({"tokenizer.ggml.model": Field("uint8", 1)}, BrokenFileError, "is no str"),
        ({"tokenizer.ggml.pre": Field("string", "klingon")}, UnsupportedError, "'klingon'"),
        ({"tokenizer.ggml.tokens": Field("string", [])}, BrokenFileError, "0 tokens"),
        ({"tokenizer.ggml.tokens": Field("string", "a")}, BrokenFileError, "no list of str"),
        ({"tokenizer.ggml.tokens": Field("int32", [1, 2])}, BrokenFileError, "no list of str"),
        ({"tokenizer.ggml.tokens": Field("string", ["a", "a", "ab", "b"])}, BrokenFileError, "twice"),
        ({"tokenizer.ggml.token_type": Field("int32", [1])}, BrokenFileError, "1 types"),
        ({"tokenizer.ggml.scores": Field("float32", [1.0])}, BrokenFileError, "1 scores"),
        ({"tokenizer.ggml.merges": Field("string", ["a c"])}, BrokenFileError, "no tokenizer the library can read"),
        ({"tokenizer.ggml.merges": Field("string", ["ab"])}, BrokenFileError, "no tokenizer the library can read"),
        ({"tokenizer.ggml.add_bos_token": Field("string", "yes")}, BrokenFileError, "is no bool"),
        ({"tokenizer.chat_template": Field("bool", True)}, BrokenFileError, "is no str"),
    ],
)
def test_damaged_metadata_is_refused(change: dict, error: type[Exception], message: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=message) as caught:
        tokenizer_from_gguf(GOOD | change, tmp_path / "x.gguf")
    assert "x.gguf" in str(caught.value)


def test_ids_out_of_range_are_none(tmp_path: Path) -> None:
    tokenizer = tokenizer_from_gguf(GOOD | {"tokenizer.ggml.eos_token_id": Field("uint32", 99)}, tmp_path)
    assert tokenizer.eos_token_ids == []


def test_a_missing_cut_is_warned_of(tmp_path: Path) -> None:
    metadata = {key: field for key, field in GOOD.items() if key != "tokenizer.ggml.pre"}
    with pytest.warns(UserWarning, match="does not say how to cut text"):
        tokenizer_from_gguf(metadata, tmp_path)
