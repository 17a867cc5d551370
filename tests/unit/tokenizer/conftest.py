"""Folders as released checkpoints have them."""

from pathlib import Path

import pytest

from tests.unit.tokenizer.tiny import LLAMA_2_TEMPLATE, LLAMA_3_TEMPLATE, llama_2_library, llama_3_library, write


@pytest.fixture
def llama_3(tmp_path: Path) -> Path:
    """A folder as a Llama-3 instruct checkpoint has it."""
    folder = tmp_path / "llama-3"
    folder.mkdir()
    library = llama_3_library()
    library.save(str(folder / "tokenizer.json"))
    ends = [library.token_to_id(text) for text in ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")]
    write(
        folder,
        tokenizer_config={
            "bos_token": "<|begin_of_text|>",
            "eos_token": "<|eot_id|>",
            "tokenizer_class": "PreTrainedTokenizerFast",
            "chat_template": LLAMA_3_TEMPLATE,
        },
        generation_config={"eos_token_id": ends},
        config={"model_type": "llama", "eos_token_id": ends[0]},
    )
    return folder


@pytest.fixture
def llama_2(tmp_path: Path) -> Path:
    """A folder as a Llama-2 chat checkpoint has it."""
    folder = tmp_path / "llama-2"
    folder.mkdir()
    llama_2_library().save(str(folder / "tokenizer.json"))
    write(
        folder,
        tokenizer_config={
            "bos_token": {"__type": "AddedToken", "content": "<s>", "normalized": False},
            "eos_token": {"__type": "AddedToken", "content": "</s>", "normalized": False},
            "unk_token": "<unk>",
            "tokenizer_class": "PreTrainedTokenizerFast",
            "chat_template": LLAMA_2_TEMPLATE,
        },
        config={"model_type": "llama", "eos_token_id": 2, "bos_token_id": 1},
    )
    return folder
