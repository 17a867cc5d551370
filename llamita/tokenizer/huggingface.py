"""The tokenizer of a tokenizer.json: the `tokenizers` library under this package's protocol."""

import json
import secrets
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import tokenizers

from llamita.checks import MAX_REASON, shortened
from llamita.errors import BrokenFileError, UsageError
from llamita.tokenizer.stream import ByteTable

LONG = 10_000  # characters, or ids: from here on by the library's calls for batches, which let other threads run


class HuggingFaceTokenizer:
    """A tokenizer of the `tokenizers` library, never changed after construction.

    `prefix` and `suffix` are the ids put around a text, `templates` the chat templates by name,
    `control_ids` those that outside text must not write besides the special ones.
    """

    def __init__(
        self,
        library: tokenizers.Tokenizer,
        *,
        bos_token_id: int | None,
        eos_token_ids: Sequence[int],
        pad_token_id: int | None,
        prefix: Sequence[int],
        suffix: Sequence[int],
        templates: Mapping[str, str],
        control_ids: frozenset[int] = frozenset(),
    ) -> None:
        self._library = library
        self._prefix, self._suffix = list(prefix), list(suffix)
        self.bos_token_id = bos_token_id
        self.eos_token_ids = list(eos_token_ids)
        self.pad_token_id = pad_token_id
        self.chat_templates = dict(templates)
        added = library.get_added_tokens_decoder()
        self.special_ids = frozenset(i for i, token in added.items() if token.special)
        self.control_ids = self.special_ids | control_ids
        is_byte_level = isinstance(library.decoder, tokenizers.decoders.ByteLevel)
        self.byte_table = ByteTable(self.id_to_token) if is_byte_level else None

    @property
    def eos_token_id(self) -> int | None:
        """The tokenizer's own end token: the first of `eos_token_ids`."""
        return self.eos_token_ids[0] if self.eos_token_ids else None

    @property
    def chat_template(self) -> str | None:
        """The default chat template, or the only one."""
        only = next(iter(self.chat_templates.values())) if len(self.chat_templates) == 1 else None
        return self.chat_templates.get("default", only)

    @property
    def vocab_size(self) -> int:
        """The largest id plus one."""
        return self._largest_id + 1

    def encode(self, text: str, *, add_special_tokens: bool = True, parse_special: bool = False) -> list[int]:
        """Ids of a text; what looks like a special token in it stays text unless `parse_special`.

        A text that brings its own BOS gets no second one.
        """
        ids = self._ids(text) if parse_special else self.encode_parts([text])
        if not add_special_tokens:
            return ids
        prefix = [] if self._prefix and ids[: len(self._prefix)] == self._prefix else self._prefix
        return [*prefix, *ids, *self._suffix]

    def encode_parts(self, parts: Sequence[str | int]) -> list[int]:
        """Ids of a text given in parts: strings are text whatever they look like, ints are control ids."""
        controls = [part for part in parts if isinstance(part, int)]
        ids = self._ids("".join(self._spelled(part) if isinstance(part, int) else part for part in parts))
        if [i for i in ids if i in self.control_ids] == controls:
            return ids
        # Somewhere the text spells a control token: read it again with those tokens under unguessable names.
        sealed, names = self._sealed
        text = "".join(names[part] if isinstance(part, int) else part for part in parts)
        return _encoded(sealed, text)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of ids; bytes that are no UTF-8 become U+FFFD, and spaces are never tidied up.

        Raises UsageError for what are no ids.
        """
        try:
            if len(ids) < LONG:
                return self._library.decode(ids, skip_special_tokens=skip_special_tokens)
            return self._library.decode_batch([ids], skip_special_tokens=skip_special_tokens)[0]
        except (OverflowError, TypeError) as error:
            raise UsageError(f"token ids are integers from 0 to {self.vocab_size - 1}: {error}") from error

    def token_to_id(self, token: str) -> int | None:
        """The id of a token, spelled as in the vocabulary."""
        return self._library.token_to_id(token)

    def id_to_token(self, token_id: int) -> str | None:
        """The vocabulary's spelling of an id; None outside the vocabulary."""
        return self._library.id_to_token(token_id) if token_id >= 0 else None

    def to_json(self) -> str:
        """The content of a tokenizer.json, for libraries that read that themselves."""
        return self._library.to_str()

    def to_sealed_json(self) -> str:
        """The same with its control tokens under names that nobody can type."""
        return self._sealed[0].to_str()

    def _ids(self, text: str) -> list[int]:
        try:
            return _encoded(self._library, text)
        except TypeError as error:
            raise UsageError("the text is not valid Unicode: it holds half of a surrogate pair") from error

    def _spelled(self, token_id: int) -> str:
        assert token_id in self.control_ids, token_id
        return self._library.id_to_token(token_id) or ""

    @cached_property
    def _largest_id(self) -> int:  # Not the size of the vocabulary: ids may have holes.
        return max(self._library.get_vocab(with_added_tokens=True).values(), default=-1)

    @cached_property
    def _sealed(self) -> tuple[tokenizers.Tokenizer, dict[int, str]]:
        """The same tokenizer with its control tokens renamed to what nobody can type, and those names."""
        names = {i: f"\U000f0000{secrets.token_hex(8)}:{i}\U000f0001" for i in self.control_ids}
        by_text = {self._spelled(i): name for i, name in names.items()}
        try:
            return tokenizers.Tokenizer.from_str(json.dumps(_renamed(self._library, by_text))), names
        except Exception as error:  # The library raises plain Exception.
            raise BrokenFileError(
                f"the tokenizer's vocabulary contradicts itself ({shortened(error, MAX_REASON)}): download it again"
            ) from error


def _encoded(library: tokenizers.Tokenizer, text: str) -> list[int]:
    if len(text) < LONG:
        return library.encode(text, add_special_tokens=False).ids
    return library.encode_batch_fast([text], add_special_tokens=False)[0].ids


def readable(tokenizer: Any) -> Any:
    """Any tokenizer under our protocol: transformers' fast ones and those of `tokenizers` are wrapped; None stays None.

    Raises UsageError for any other object.
    """
    if tokenizer is None or (hasattr(tokenizer, "id_to_token") and hasattr(tokenizer, "special_ids")):
        return tokenizer
    library = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not isinstance(library, tokenizers.Tokenizer):
        raise UsageError(
            f"generate cannot read a {type(tokenizer).__name__} as a tokenizer: pass "
            "llamita.tokenizer.load.load_tokenizer(folder), or a fast tokenizer of transformers"
        )
    end, templates = getattr(tokenizer, "eos_token_id", None), getattr(tokenizer, "chat_template", None)
    templates = templates if isinstance(templates, Mapping) else {} if templates is None else {"default": templates}
    return HuggingFaceTokenizer(
        library,
        bos_token_id=getattr(tokenizer, "bos_token_id", None),
        eos_token_ids=[] if end is None else [end],
        pad_token_id=getattr(tokenizer, "pad_token_id", None),
        prefix=(),
        suffix=(),
        templates=templates,
    )


def _renamed(library: tokenizers.Tokenizer, names: Mapping[str, str]) -> dict[str, Any]:
    """A tokenizer.json's content, its tokens renamed wherever they are named."""
    content = json.loads(library.to_str())
    for token in content["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    model = content["model"]
    if isinstance(model["vocab"], dict):  # BPE, WordPiece, WordLevel
        model["vocab"] = {names.get(token, token): i for token, i in model["vocab"].items()}
    else:  # Unigram: pieces with their scores, the unknown one by its place
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in model["vocab"]]
    if "merges" in model:  # A renamed token cannot be merged from text, nor take part in a merge.
        model["merges"] = [merge for merge in model["merges"] if names.keys().isdisjoint(_involved(merge))]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    content["post_processor"] = None  # It names tokens too, and the ids around a text are not its business here.
    return content


def _involved(merge: list[str] | str) -> list[str]:
    """The tokens of a merge and what it makes; older files write both tokens as one string."""
    pair = merge.split(" ") if isinstance(merge, str) else merge
    return [*pair, "".join(pair)]
