"""Training a tokenizer: byte-level BPE with Llama 3's split pattern and special tokens."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from llamita.errors import UsageError
from llamita.files.disk import explained, write_json, write_text

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BOS, END = "<|begin_of_text|>", "<|end_of_text|>"
EOM, EOT, PAD = "<|eom_id|>", "<|eot_id|>", "<|finetune_right_pad_id|>"
HEADER, HEADER_END = "<|start_header_id|>", "<|end_header_id|>"
SPECIAL = (BOS, END, PAD, HEADER, HEADER_END, EOM, EOT, "<|python_tag|>")
SMALLEST = 256 + len(SPECIAL)  # every byte is a token
LLAMA3_SPLIT = (  # as in Llama 3's tokenizer.json
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_tokenizer(texts: Iterable[str], folder: Path, *, vocab_size: int, max_length: int) -> None:
    """Train a tokenizer on texts and write it to a folder that `load_tokenizer` and transformers read.

    vocab_size: tokens in all; fewer where the texts have no more pairs. max_length: the most tokens that its model
    reads. The same texts give the same tokenizer. A text ends with END, an answer with EOT or EOM.
    Raises UsageError for a vocabulary that is too small.
    """
    if vocab_size < SMALLEST:
        raise UsageError(f"vocab_size is {vocab_size}: it must be at least {SMALLEST}, the bytes and control tokens")
    library = train_bpe(texts, vocab_size=vocab_size)
    ids = {name: library.token_to_id(token) for name, token in (("bos", BOS), ("pad", PAD))}
    ends = [library.token_to_id(token) for token in (END, EOT, EOM)]
    with explained("write", folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "tokenizer.json", library.to_str() + "\n")
    write_json(
        folder / "tokenizer_config.json",
        {
            "bos_token": BOS, "eos_token": END, "pad_token": PAD, "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": max_length, "clean_up_tokenization_spaces": False,
        },
    )  # fmt: skip
    write_json(
        folder / "generation_config.json",
        {"bos_token_id": ids["bos"], "eos_token_id": ends, "pad_token_id": ids["pad"]},
    )


def train_bpe(texts: Iterable[str], *, vocab_size: int, splits_digits: bool = False) -> "Tokenizer":
    """The trained tokenizer of the `tokenizers` library, which puts BOS before a text.

    splits_digits: no number but a digit becomes a token.
    """
    from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers, processors
    from tokenizers.models import BPE
    from tokenizers.trainers import BpeTrainer

    tokenizer = Tokenizer(BPE(ignore_merges=True))
    split = pre_tokenizers.Split(Regex(LLAMA3_SPLIT), behavior="isolated", invert=False)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=vocab_size - len(SPECIAL), initial_alphabet=alphabet, show_progress=False)
    if splits_digits:
        texts = (re.sub(r"(?<=\d)(?=\d)", " ", text) for text in texts)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(list(SPECIAL))
    bos = (BOS, tokenizer.token_to_id(BOS))
    template = processors.TemplateProcessing(single=f"{BOS} $A", pair=f"{BOS} $A {BOS}:1 $B:1", special_tokens=[bos])
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return tokenizer
