"""The bytes of tokens: put together they are the text."""

from pathlib import Path

import pytest

from llamita.tokenizer.load import load_tokenizer
from llamita.tokenizer.token_bytes import token_bytes
from tests.unit.tokenizer.tiny import TEXT


@pytest.mark.parametrize("name", ["llama_2", "llama_3"])
def test_the_pieces_of_a_text_are_its_bytes(name: str, request: pytest.FixtureRequest):
    tokenizer = load_tokenizer(request.getfixturevalue(name))
    pieces = token_bytes(tokenizer)
    assert len(pieces) == tokenizer.vocab_size
    assert all(pieces[i] is None for i in tokenizer.control_ids)
    for text in TEXT:
        spelled = b"".join(pieces[i] or b"" for i in tokenizer.encode(text, add_special_tokens=False))
        assert spelled.decode().removeprefix(" ") == text


def test_every_byte_has_its_letter(small_path: Path):
    assert {piece for piece in token_bytes(load_tokenizer(small_path)) if piece} == {bytes([b]) for b in range(256)}
