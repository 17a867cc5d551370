"""A tokenizer as the files of a checkpoint folder, for `load_tokenizer` and for transformers."""

from pathlib import Path
from typing import Any

from llamita.files.disk import write_json, write_text
from llamita.tokenizer.protocol import Tokenizer

OTHERS = "additional_chat_templates"


def save_tokenizer(tokenizer: Tokenizer, folder: Path, *, max_length: int) -> None:
    """Write tokenizer.json, tokenizer_config.json and the chat templates; each appears whole or not at all.

    max_length: the most tokens that the model reads. Every end of an answer goes into the model's own files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for stale in (
        folder / "special_tokens_map.json",
        folder / "chat_template.jinja",
        *folder.glob(f"{OTHERS}/*.jinja"),
    ):
        stale.unlink(missing_ok=True)  # of a tokenizer that was there, and would be read as this one's
    write_text(folder / "tokenizer.json", tokenizer.to_json() + "\n")
    ids = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id, "pad": tokenizer.pad_token_id}
    tokens = {f"{role}_token": tokenizer.id_to_token(i) for role, i in ids.items() if i is not None}
    plain, whole = tokenizer.encode("a", add_special_tokens=False), tokenizer.encode("a")
    settings: dict[str, Any] = {
        **tokens,
        "add_bos_token": whole[:1] == [tokenizer.bos_token_id] != plain[:1],
        "add_eos_token": whole[-1:] == [tokenizer.eos_token_id] != plain[-1:],
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
    }
    templates = dict(tokenizer.chat_templates)
    if tokenizer.chat_template is not None:
        settings["chat_template"] = tokenizer.chat_template
        write_text(folder / "chat_template.jinja", tokenizer.chat_template)
    others = {name: text for name, text in templates.items() if text != tokenizer.chat_template}
    if others:
        (folder / OTHERS).mkdir(exist_ok=True)
    for name, text in others.items():
        write_text(folder / OTHERS / f"{Path(name).name}.jinja", text)
    write_json(folder / "tokenizer_config.json", settings)
