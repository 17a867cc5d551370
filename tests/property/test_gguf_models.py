"""Whatever a GGUF file says of its model and tokenizer: it is loaded, or refused in one sentence."""

import itertools
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llamita.checkpoint.gguf import load_gguf
from llamita.checkpoint.gguf_save import save_gguf
from llamita.config import LlamaConfig
from llamita.errors import LlamitaError
from llamita.files.gguf import GgufFile
from llamita.files.gguf_types import Field
from llamita.files.gguf_write import Piece, write_gguf
from llamita.model.llama import LlamaForCausalLM
from llamita.tokenizer.load import assembled
from tests.small import BEGIN, END, END_OF_TURN, PAD, byte_tokenizer
from tests.unit.tokenizer.test_gguf import assembled_from, sentence_piece

CONFIG = LlamaConfig(
    vocab_size=333,
    hidden_size=32,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    rope_parameters={
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 24,
    },
)
ODD = st.one_of(
    st.sampled_from(
        [0, 1, 2, -1, 2**31 - 1, 2**63, 1e-45, 3e38, float("nan"), float("inf"), True, "", "llama", "[" * 9999]
    ),
    st.lists(st.sampled_from([0, 1, 2**40, -5]), max_size=3),
    st.lists(st.sampled_from(["", "a", "a b", "\u2581", "[PAD1]", "<|eot_id|>"]), max_size=4),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(width=32),
    st.text(st.characters(codec="utf-8"), max_size=9),
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One model with each kind of tokenizer, the second in blocks."""
    folder = tmp_path_factory.mktemp("models")
    model = LlamaForCausalLM(CONFIG)
    given = {"bos": BEGIN, "eos": [END, END_OF_TURN], "pad": PAD, "prefix": [BEGIN], "suffix": [], "templates": {}}
    letters = assembled(byte_tokenizer(), **given)
    pieces = assembled_from(sentence_piece(), "<s>", "</s>")
    return [save_gguf(model, letters, folder / "a.gguf"), save_gguf(model, pieces, folder / "b.gguf", "q8_0")]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("changed")
    return (folder / f"{number}.gguf" for number in itertools.count())


def loaded_or_refused(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model, tokenizer = load_gguf(path, device="cpu")
        except LlamitaError as error:
            assert "\n" not in str(error).replace(str(path), "")
        else:
            with torch.no_grad():
                assert model(torch.tensor([[0, 1]])).logits.shape[:2] == (1, 2)
            if tokenizer is not None:
                tokenizer.decode(tokenizer.encode("a b <s> é"))
    path.unlink()


def kind_of(value: object) -> str:
    value = value[0] if isinstance(value, list) and value else value
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int64" if value < 2**63 else "uint64"
    return "float32" if isinstance(value, float) else "string"


@settings(max_examples=150)
@given(data=st.data())
def test_odd_fields(data: st.DataObject, files: list[Path], places) -> None:
    file = GgufFile(data.draw(st.sampled_from(files)))
    metadata = dict(file.metadata)
    for key in data.draw(st.lists(st.sampled_from(sorted(metadata)), min_size=1, max_size=2)):
        value = data.draw(ODD | st.none())
        metadata.pop(key, None)
        if value is not None:
            metadata[key] = Field(kind_of(value), value)
    pieces = {name: Piece(e.storage, e.shape, lambda name=name: file.load(name)) for name, e in file.entries.items()}
    path = next(places)
    write_gguf(path, metadata, pieces)
    loaded_or_refused(path)


@settings(max_examples=150)
@given(data=st.data())
def test_changed_bytes(data: st.DataObject, files: list[Path], places) -> None:
    content = bytearray(data.draw(st.sampled_from(files)).read_bytes())
    header = content.find(b"output.weight") + 60
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, header))] = data.draw(st.integers(0, 255))
    path = next(places)
    path.write_bytes(content)
    loaded_or_refused(path)
