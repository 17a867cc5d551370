"""A trained tokenizer: loads here and in transformers, loses no text, and is the same each time."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from llamita.errors import UsageError
from llamita.tokenizer.load import load_tokenizer
from llamita.tokenizer.protocol import Tokenizer as Protocol
from llamita.tokenizer.train import BOS, END, EOM, EOT, LLAMA3_SPLIT, SPECIAL, train_bpe, train_tokenizer

TEXTS = [
    f"The {beast} has {n} leaves, isn't it?\n\n  It eats {n * n}." for n, beast in enumerate(["llama", "fox"] * 40)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(TEXTS, folder, vocab_size=320, max_length=77)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Protocol:
    return load_tokenizer(folder)


def test_it_has_the_tokens_that_were_asked_for(tokenizer: Protocol) -> None:
    assert tokenizer.vocab_size == 320
    assert tokenizer.bos_token_id == tokenizer.token_to_id(BOS)
    assert tokenizer.eos_token_ids == [tokenizer.token_to_id(token) for token in (END, EOT, EOM)]
    assert {tokenizer.token_to_id(token) for token in SPECIAL} == set(range(312, 320))
    ids = tokenizer.encode(" llama leaves")
    assert ids[0] == tokenizer.bos_token_id
    assert len(ids) < 6  # merged, not bytes


@given(st.text())
def test_no_text_is_lost(tokenizer: Protocol, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_transformers_reads_the_same_tokens(folder: Path, tokenizer: Protocol) -> None:
    peer = AutoTokenizer.from_pretrained(folder)
    for text in (*TEXTS[:3], "123456", "  \n\n a", "été 日本"):
        assert peer(text).input_ids == tokenizer.encode(text)
    assert (peer.bos_token, peer.eos_token, peer.model_max_length) == (BOS, END, 77)


def test_training_again_gives_the_same_file(folder: Path, tmp_path: Path) -> None:
    train_tokenizer(iter(TEXTS), tmp_path, vocab_size=320, max_length=77)
    assert {file.name for file in tmp_path.iterdir()} == {file.name for file in folder.iterdir()}
    for file in folder.iterdir():
        assert (tmp_path / file.name).read_bytes() == file.read_bytes()


def test_the_split_is_that_of_llama_3(cria_path: Path) -> None:
    assert LLAMA3_SPLIT in Tokenizer.from_file(str(cria_path / "tokenizer.json")).to_str().replace("\\\\", "\\")


def test_digits_can_stay_single() -> None:
    texts = ["11 11 11 11"] * 9
    assert train_bpe(texts, vocab_size=270).token_to_id("11") is not None
    assert train_bpe(texts, vocab_size=270, splits_digits=True).token_to_id("11") is None


def test_a_vocabulary_without_all_bytes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="vocab_size is 263: it must be at least 264"):
        train_tokenizer(TEXTS, tmp_path, vocab_size=263, max_length=8)
