"""Streamed text by hand-made cases; the property test holds the rest."""

from pathlib import Path

import pytest

from llamita.tokenizer.load import load_tokenizer
from llamita.tokenizer.protocol import Tokenizer
from llamita.tokenizer.stream import MOST, StreamDecoder


def pushed(tokenizer: Tokenizer, ids: list[int], **options: bool) -> list[str]:
    decoder = StreamDecoder(tokenizer, **options)
    return [*(decoder.push(i) for i in ids), decoder.flush()]


def test_a_character_comes_whole(llama_3: Path):
    tokenizer = load_tokenizer(llama_3)
    ids = tokenizer.encode("aሴb", add_special_tokens=False)
    assert pushed(tokenizer, ids) == ["a", "", "", "ሴ", "b", ""]


def test_a_broken_character_comes_with_the_flush(llama_3: Path):
    tokenizer = load_tokenizer(llama_3)
    ids = tokenizer.encode("aሴ", add_special_tokens=False)[:-1]
    assert pushed(tokenizer, ids) == ["a", "", "", "\ufffd"]


def test_byte_tokens_come_as_a_run(llama_2: Path):
    tokenizer = load_tokenizer(llama_2)
    ids = tokenizer.encode("a 🦙a", add_special_tokens=False)
    assert "".join(pushed(tokenizer, ids)) == tokenizer.decode(ids) == "a 🦙a"
    assert pushed(tokenizer, ids)[-2:] == ["🦙a", ""]


def test_spaces_between_words_stay_and_the_first_goes(llama_2: Path):
    tokenizer = load_tokenizer(llama_2)
    ids = tokenizer.encode("the llama  a the")
    assert tokenizer.bos_token_id == ids[0]
    pieces = pushed(tokenizer, ids)
    assert "".join(pieces) == "the llama  a the"
    assert pieces[:2] == ["", "the"]


@pytest.mark.parametrize("skip", [True, False])
def test_special_tokens_are_shown_only_if_asked(llama_3: Path, skip: bool):
    tokenizer = load_tokenizer(llama_3)
    ids = tokenizer.encode("Hi<|eot_id|> there", parse_special=True)
    expected = "Hi there" if skip else "<|begin_of_text|>Hi<|eot_id|> there"
    assert "".join(pushed(tokenizer, ids, skip_special_tokens=skip)) == expected


def test_ids_outside_the_vocabulary_are_silent(llama_3: Path):
    tokenizer = load_tokenizer(llama_3)
    assert pushed(tokenizer, [10**6, *tokenizer.encode("a", add_special_tokens=False)]) == ["", "a", ""]


def test_a_push_decodes_only_the_last_tokens(llama_3: Path, monkeypatch: pytest.MonkeyPatch):
    tokenizer = load_tokenizer(llama_3)
    monkeypatch.setattr(tokenizer, "byte_table", None)  # as if its decoder did more than to join bytes
    sizes: list[int] = []
    decode = tokenizer.decode
    monkeypatch.setattr(tokenizer, "decode", lambda ids, **options: sizes.append(len(ids)) or decode(ids, **options))
    ids = tokenizer.encode("the llama " * 50 + "\ufffd" * 50)
    pushed(tokenizer, ids)
    assert max(sizes) <= MOST + 1
    assert len(sizes) < 1.2 * len(ids)  # most pushes decode once


def test_a_decoder_is_new_after_the_flush(llama_2: Path):
    tokenizer = load_tokenizer(llama_2)
    decoder = StreamDecoder(tokenizer)
    ids = tokenizer.encode("the llama", add_special_tokens=False)
    for _ in range(2):
        assert "".join([*map(decoder.push, ids), decoder.flush()]) == "the llama"
