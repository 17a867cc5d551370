"""A model of 0.2 M parameters and a tokenizer of single bytes, made from a seed, for what surrounds a model."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from llamita.adapters.config import LoraConfig
from llamita.adapters.files import save_adapter
from llamita.adapters.lora import add_lora
from llamita.config import LlamaConfig
from llamita.model.llama import LlamaForCausalLM

SPECIAL = ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|pad|>")
BEGIN, END, END_OF_TURN, PAD = range(256, 260)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message.role }}: {{ message.content }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
CONFIG = LlamaConfig(
    vocab_size=260,
    hidden_size=64,
    intermediate_size=176,
    num_attention_heads=4,
    num_key_value_heads=2,
    num_hidden_layers=4,
    max_position_embeddings=128,
    tie_word_embeddings=True,
    bos_token_id=BEGIN,
    eos_token_id=[END, END_OF_TURN],
    pad_token_id=PAD,
)


def save_small_model(folder: Path, *, seed: int = 0) -> None:
    """Write config, weights, tokenizer, chat template and generation defaults as a Hugging Face folder."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        LlamaForCausalLM(CONFIG).save_pretrained(folder)
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    names = {"bos_token": SPECIAL[0], "eos_token": SPECIAL[1], "pad_token": SPECIAL[3], "chat_template": CHAT_TEMPLATE}
    files = {
        "tokenizer_config.json": {**names, "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 128},
        "generation_config.json": {"bos_token_id": BEGIN, "eos_token_id": [END, END_OF_TURN], "pad_token_id": PAD},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")


def save_small_adapter(
    folder: Path, model_folder: Path, *, seed: int, layers: Sequence[str] = ("q_proj", "v_proj")
) -> Path:
    """Write a LoRA adapter of such a model, which changes what it writes, as peft's files; returns the folder."""
    model = LlamaForCausalLM.from_pretrained(model_folder)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for name in add_lora(model, LoraConfig(r=3, lora_alpha=5, target_modules=list(layers))):
            torch.nn.init.normal_(model.get_submodule(name).get_submodule("pairs.default").B, std=0.3)
    save_adapter(model, folder)
    return folder


def byte_tokenizer() -> Tokenizer:
    """One token a byte, then the special tokens; begins every text with the first of them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{SPECIAL[0]} $A", pair=f"{SPECIAL[0]} $A $B", special_tokens=[(SPECIAL[0], BEGIN)]
    )
    return tokenizer
