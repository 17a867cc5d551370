"""The tokenizer: byte-level BPE of 2,048 tokens with Llama-3's split pattern and Llama-3's special tokens, by name."""

from collections.abc import Iterable

from tokenizers import Tokenizer

from llamita.tokenizer.train import BOS, END, EOM, EOT, HEADER, HEADER_END, PAD, SPECIAL, train_bpe

__all__ = ["BOS", "END", "EOM", "EOT", "HEADER", "HEADER_END", "PAD", "SPECIAL", "train_tokenizer"]


def train_tokenizer(texts: Iterable[str], *, vocab_size: int) -> Tokenizer:
    """Train on texts; runs of digits are broken up first, so that no number but a digit becomes a token."""
    return train_bpe(texts, vocab_size=vocab_size, splits_digits=True)
