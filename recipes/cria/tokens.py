"""The tokenizer: byte-level BPE of 2,048 tokens with Llama-3's split pattern and Llama-3's special tokens, by name."""

import re
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

BOS, END = "<|begin_of_text|>", "<|end_of_text|>"
EOM, EOT, PAD = "<|eom_id|>", "<|eot_id|>", "<|finetune_right_pad_id|>"
HEADER, HEADER_END = "<|start_header_id|>", "<|end_header_id|>"
SPECIAL = (BOS, END, PAD, HEADER, HEADER_END, EOM, EOT, "<|python_tag|>")

LLAMA3_SPLIT = (  # as in Llama 3's tokenizer.json
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_tokenizer(texts: Iterable[str], *, vocab_size: int) -> Tokenizer:
    """Train on texts; runs of digits are broken up first, so that no number but a digit becomes a token."""
    tokenizer = Tokenizer(BPE(ignore_merges=True))
    split = pre_tokenizers.Split(Regex(LLAMA3_SPLIT), behavior="isolated", invert=False)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=vocab_size - len(SPECIAL), initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator((re.sub(r"(?<=\d)(?=\d)", " ", text) for text in texts), trainer)
    tokenizer.add_special_tokens(list(SPECIAL))
    bos = (BOS, tokenizer.token_to_id(BOS))
    template = processors.TemplateProcessing(single=f"{BOS} $A", pair=f"{BOS} $A {BOS}:1 $B:1", special_tokens=[bos])
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return tokenizer
