"""Whether a tokenizer's ids have a place in a model."""

from pathlib import Path

from llamita.config import LlamaConfig
from llamita.errors import BrokenFileError
from llamita.tokenizer.protocol import Tokenizer


def check_vocabulary(tokenizer: Tokenizer, config: LlamaConfig, folder: Path) -> None:
    """Raise BrokenFileError where the tokenizer has ids that the model has no embedding for."""
    named = (tokenizer.bos_token_id, tokenizer.pad_token_id)  # the files name them, and may lie
    largest = max(tokenizer.vocab_size - 1, *(i for i in named if i is not None), -1)
    if largest >= config.vocab_size:
        raise BrokenFileError(
            f"the tokenizer in {folder} has ids up to {largest}, but the model only "
            f"{config.vocab_size} embeddings: put the model's own tokenizer there"
        )
