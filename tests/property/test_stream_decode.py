"""Streamed text equals decoded text for any ids, bytes that are no UTF-8 included."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from llamita.tokenizer.load import load_tokenizer
from llamita.tokenizer.stream import StreamDecoder
from tests.unit.tokenizer.tiny import llama_2_library, llama_3_library


def loaded(library: Tokenizer):
    with TemporaryDirectory() as folder:
        library.save(f"{folder}/tokenizer.json")
        return load_tokenizer(Path(folder))


def metaspace_decoder_library() -> Tokenizer:
    from tokenizers import decoders

    library = llama_2_library()
    library.decoder = decoders.Sequence(
        [decoders.Metaspace(prepend_scheme="first"), decoders.ByteFallback(), decoders.Fuse()]
    )
    return library


TOKENIZERS = [loaded(make()) for make in (llama_3_library, llama_2_library, metaspace_decoder_library)]
NAMES = ["byte-level", "byte-fallback", "metaspace"]


def streamed(tokenizer, ids: list[int], skip: bool) -> tuple[str, list[str]]:
    decoder = StreamDecoder(tokenizer, skip_special_tokens=skip)
    pieces = [decoder.push(i) for i in ids]
    return "".join(pieces) + decoder.flush(), pieces


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=NAMES)
@given(ids=st.lists(st.integers(0, 460), max_size=40), skip=st.booleans())
def test_any_ids(tokenizer, ids: list[int], skip: bool):
    assert streamed(tokenizer, ids, skip)[0] == tokenizer.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=NAMES)
@given(data=st.lists(st.sampled_from(b"a \xe2\x82\xac\xf0\x9f\xa6\x99\xc3\xff\x80\xed\xa0"), max_size=40))
def test_any_bytes(tokenizer, data: list[int]):
    ids = [byte_id(tokenizer, byte) for byte in data]
    assert streamed(tokenizer, ids, True)[0] == tokenizer.decode(ids)


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=NAMES)
@given(text=st.text(max_size=30))
def test_r10_text_never_comes_with_half_a_character(tokenizer, text: str):
    ids = tokenizer.encode(text)
    whole, pieces = streamed(tokenizer, ids, True)
    assert whole == tokenizer.decode(ids)
    assert "\ufffd" in text or all("\ufffd" not in piece for piece in pieces)


def byte_id(tokenizer, byte: int) -> int:
    """The id of a token that stands for one byte."""
    fallback = tokenizer.token_to_id(f"<0x{byte:02X}>")
    if fallback is not None:
        return fallback
    shifted = [b for b in range(256) if not (33 <= b <= 126 or 161 <= b <= 172 or 174 <= b <= 255)]
    return tokenizer.token_to_id(chr(256 + shifted.index(byte)) if byte in shifted else chr(byte))
