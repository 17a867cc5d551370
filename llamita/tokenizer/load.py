"""A tokenizer from a checkpoint folder: tokenizer.json, and the files that say what its tokens are for."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import tokenizers

from llamita.checks import MAX_REASON, quoted, shortened
from llamita.errors import BrokenFileError, NotFoundError
from llamita.files.disk import explained, read_json, read_text
from llamita.tokenizer.huggingface import HuggingFaceTokenizer
from llamita.tokenizer.protocol import Tokenizer

ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")
MAX_ID = 2**31 - 1
LLAMA_3_PAD = "<|finetune_right_pad_id|>"

Settings = Mapping[str, Any]


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a checkpoint folder.

    Raises NotFoundError without a tokenizer.json, BrokenFileError for a damaged file.
    """
    folder = Path(folder)
    library = _library(folder / "tokenizer.json")
    settings = {**_known(folder / "special_tokens_map.json"), **_known(folder / "tokenizer_config.json")}
    models = [_with_ids(folder / name) for name in ("generation_config.json", "config.json")]
    _add_tokens(library, settings, folder)
    roles = {role: _id_of(library, settings.get(role)) for role in ROLES}
    bos = _first(roles["bos_token"], *(model.get("bos_token_id") for model in models))
    eos = _ints([roles["eos_token"], *(i for model in models for i in _listed(model.get("eos_token_id")))])
    templates = _templates(folder, settings)
    prefix, suffix = _around(library, settings, bos, eos)
    return assembled(
        library, bos=bos, eos=eos, pad=roles["pad_token"], prefix=prefix, suffix=suffix, templates=templates
    )


def assembled(
    library: tokenizers.Tokenizer,
    *,
    bos: int | None,
    eos: list[int],
    pad: int | None,
    prefix: list[int],
    suffix: list[int],
    templates: Mapping[str, str],
) -> HuggingFaceTokenizer:
    """A tokenizer of its library and what its tokens are for; without a pad token, Llama 3's is looked for."""
    return HuggingFaceTokenizer(
        library,
        bos_token_id=bos,
        eos_token_ids=eos,
        pad_token_id=_first(pad, library.token_to_id(LLAMA_3_PAD)),
        prefix=prefix,
        suffix=suffix,
        templates=templates,
        control_ids=_written(templates, library),
    )


def _library(path: Path) -> tokenizers.Tokenizer:
    with explained("read", path):
        if not path.exists():
            raise NotFoundError(f"no tokenizer.json in {path.parent}: the folder is no complete checkpoint")
    return parsed(read_text(path), path)


def parsed(text: str, source: Path) -> tokenizers.Tokenizer:
    """The library's tokenizer of a tokenizer.json's content. Raises BrokenFileError, naming the source."""
    try:
        library = tokenizers.Tokenizer.from_str(text)
        library.no_truncation()  # Both may be left in the file by training, and would cut and pad prompts.
        library.no_padding()
        library.encode("a", add_special_tokens=True)  # A damaged post-processor is not noticed before.
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # The library raises plain Exception, and its Rust panics are no Exception.
        raise BrokenFileError(
            f"{source} has no tokenizer the library can read ({shortened(error, MAX_REASON)}): download it again"
        ) from error
    return library


def _known(path: Path) -> dict[str, Any]:
    """What an optional JSON file says, nulls left out."""
    with explained("read", path):
        content = read_json(path) if path.exists() else {}
    return {name: value for name, value in content.items() if value is not None}


def _with_ids(path: Path) -> dict[str, Any]:
    """What a model's optional JSON file says, its tokens' ids checked to be such as fit 32 bits."""
    content = _known(path)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        wrong = [i for i in _listed(content.get(name)) if type(i) is int and i > MAX_ID]
        if wrong:
            raise BrokenFileError(f"{name} in {path} is {quoted(wrong[0])}, no token's number: mend or remove it")
    return content


def _add_tokens(library: tokenizers.Tokenizer, settings: Settings, folder: Path) -> None:
    """Add the tokens that only tokenizer_config.json knows, and mark those named in a role as special."""
    for number, token in _by_id(settings.get("added_tokens_decoder", {}), folder):
        if library.token_to_id(token.content) is None:
            library.add_tokens([token])
            if library.token_to_id(token.content) != number:
                raise BrokenFileError(
                    f"tokenizer_config.json in {folder} gives {quoted(token.content)} the id {quoted(number)}, for "
                    "which"
                    " tokenizer.json has no place: the two are not of one checkpoint"
                )
    named = [settings.get(role) for role in ROLES]
    named += _listed(settings.get("additional_special_tokens")) + _listed(settings.get("extra_special_tokens"))
    added = {token.content: token for token in library.get_added_tokens_decoder().values()}
    for text in filter(None, map(_text, named)):
        if library.token_to_id(text) is not None and not (text in added and added[text].special):
            token = added.get(text, tokenizers.AddedToken(text, normalized=False))
            token.special = True
            library.add_special_tokens([token])


def _by_id(tokens: Any, folder: Path) -> list[tuple[int, tokenizers.AddedToken]]:
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    try:
        found = {
            int(i): tokenizers.AddedToken(one["content"], **{flag: one[flag] for flag in flags if flag in one})
            for i, one in tokens.items()
        }
        return sorted(found.items(), key=lambda item: item[0])
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise BrokenFileError(f"added_tokens_decoder in tokenizer_config.json in {folder} is damaged") from error


def _around(
    library: tokenizers.Tokenizer, settings: Settings, bos: int | None, eos: list[int]
) -> tuple[list[int], list[int]]:
    """The ids that go before and after a text: as tokenizer.json has it, unless an older flag says otherwise."""
    plain = library.encode("a", add_special_tokens=False).ids
    whole = library.encode("a", add_special_tokens=True).ids
    start = next((i for i in range(len(whole)) if whole[i : i + len(plain)] == plain), 0)
    prefix, suffix = whole[:start], whole[start + len(plain) :]
    # Llama 1's own class put the BOS there itself, and left no word of it in the file.
    is_silent = library.post_processor is None and str(settings.get("tokenizer_class")).startswith("LlamaTokenizer")
    add_bos = settings.get("add_bos_token", True if is_silent else None)
    if add_bos is not None:
        prefix = [bos] if add_bos and bos is not None else []
    if "add_eos_token" in settings:
        suffix = eos[:1] if settings["add_eos_token"] else []
    return prefix, suffix


def _templates(folder: Path, settings: Settings) -> dict[str, str]:
    """The chat templates by name; files win over tokenizer_config.json."""
    stored = settings.get("chat_template", [])
    named = [{"name": "default", "template": stored}] if isinstance(stored, str) else stored
    try:
        templates = {entry["name"]: str(entry["template"]) for entry in named}
    except (TypeError, KeyError) as error:
        raise BrokenFileError(
            f"chat_template in tokenizer_config.json in {folder} is neither text nor a list"
        ) from error
    for path in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        templates[path.stem] = read_text(path)
    if (folder / "chat_template.jinja").exists():
        templates["default"] = read_text(folder / "chat_template.jinja")
    return templates


def _written(templates: Mapping[str, str], library: tokenizers.Tokenizer) -> frozenset[int]:
    """Added tokens not marked special that a template writes, as DeepSeek's `<｜User｜>`, and does not look for."""
    added = {i: token.content for i, token in library.get_added_tokens_decoder().items() if not token.special}
    inside = {i: text for i, text in added.items() if any(text in template for template in templates.values())}
    if not inside:
        return frozenset()
    from llamita.tokenizer.template import looked_for

    sought = frozenset[str]().union(*map(looked_for, templates.values()))
    return frozenset(i for i, text in inside.items() if text not in sought)


def _text(token: Any) -> str | None:
    """A token's text, from a string or from an AddedToken's dictionary."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _id_of(library: tokenizers.Tokenizer, token: Any) -> int | None:
    text = _text(token)
    return library.token_to_id(text) if text else None


def _listed(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else [value]


def _ints(values: Iterable[Any]) -> list[int]:
    """The ids among the values, once each; -1 is how old files say none."""
    return list(dict.fromkeys(value for value in values if type(value) is int and value >= 0))


def _first(*values: Any) -> int | None:
    return next(iter(_ints(values)), None)
