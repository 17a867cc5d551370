"""The tokenizer: byte-level BPE of 2,048 tokens with Llama-3's split pattern and Llama-3's special tokens, by name."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from llamita.files.write import write_json, write_text
from llamita.tokenizer.train import BOS, END, EOM, EOT, HEADER, HEADER_END, PAD, SPECIAL, train_bpe

__all__ = [
    "BOS", "END", "EOM", "EOT", "HEADER", "HEADER_END", "PAD", "SPECIAL", "token_ids", "train_tokenizer",
    "write_tokenizer",
]  # fmt: skip
TEMPLATE = Path(__file__).with_name("chat_template.jinja")
SAMPLING = {"do_sample": True, "temperature": 0.7, "top_p": 0.9}


def train_tokenizer(texts: Iterable[str], *, vocab_size: int) -> Tokenizer:
    """Train on texts; runs of digits are broken up first, so that no number but a digit becomes a token."""
    return train_bpe(texts, vocab_size=vocab_size, splits_digits=True)


def write_tokenizer(tokenizer: Tokenizer, folder: Path, *, length: int) -> None:
    """Write the tokenizer, what its special tokens are for, the chat template, and how to sample."""
    write_json(folder / "generation_config.json", token_ids(tokenizer) | SAMPLING)
    template = TEMPLATE.read_text(encoding="utf-8")
    names = {"bos_token": BOS, "eos_token": EOT, "pad_token": PAD}
    more = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": length, "chat_template": template}
    flags = {"clean_up_tokenization_spaces": False, "model_input_names": ["input_ids", "attention_mask"]}
    write_json(folder / "tokenizer_config.json", names | more | flags)
    write_json(folder / "special_tokens_map.json", names)
    write_text(folder / "chat_template.jinja", template)
    write_text(folder / "tokenizer.json", tokenizer.to_str(pretty=True) + "\n")


def token_ids(tokenizer: Tokenizer) -> dict[str, Any]:
    """What the special tokens are for, by the names of a Hugging Face config."""
    return {
        "bos_token_id": tokenizer.token_to_id(BOS),
        "eos_token_id": [tokenizer.token_to_id(token) for token in (END, EOT, EOM)],
        "pad_token_id": tokenizer.token_to_id(PAD),
    }
