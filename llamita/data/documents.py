"""Records as tokens: what the model reads, what it is to write next, and where nothing is to be learned."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llamita.data.records import Record
from llamita.errors import UsageError
from llamita.tokenizer.chat import encode_chat
from llamita.tokenizer.messages import checked
from llamita.tokenizer.protocol import Tokenizer

IGNORED = -100
MERGED = 1  # tokens at the end of a prompt that may become part of the answer's first token


@dataclass(frozen=True, slots=True)
class Document:
    """Pairs of a token and the next one: inputs (n,) and targets (n,), int32, IGNORED where nothing is learned.

    is_splittable: it may be cut and trained in parts, each without the tokens before it.
    """

    inputs: Tensor
    targets: Tensor
    is_splittable: bool
    where: str = ""

    def __len__(self) -> int:
        return len(self.inputs)


def make_documents(records: Iterable[Record], tokenizer: Tokenizer, *, learns_all: bool) -> list[Document]:
    """The documents of records. learns_all: learn prompts and the user's messages too.

    Raises UsageError for a record of which nothing can be learned, and for messages that the template refuses.
    """
    return [_document(record, tokenizer, learns_all=learns_all) for record in records]


def _document(record: Record, tokenizer: Tokenizer, *, learns_all: bool) -> Document:
    form = next(iter(record.fields))
    try:
        tokens, is_learned = FORMS[form](record.fields, tokenizer)
    except UsageError as error:
        raise UsageError(f"{record.where}: {error}") from error
    if learns_all:
        is_learned = [True] * len(tokens)
    ids = torch.tensor(tokens, dtype=torch.int32)
    targets = torch.where(torch.tensor(is_learned[1:], dtype=torch.bool), ids[1:], IGNORED)
    if not bool((targets != IGNORED).any()):
        raise UsageError(
            f"{record.where} has no token to learn: give it a text, a completion or an assistant's message"
        )
    return Document(ids[:-1], targets, is_splittable=learns_all or not record.is_masked, where=record.where)


Encoded = tuple[list[int], list[bool]]


def _of_text(fields: Mapping[str, Any], tokenizer: Tokenizer) -> Encoded:
    tokens = [*_begun(tokenizer.encode(fields["text"]), tokenizer), *_end(tokenizer)]
    return tokens, [True] * len(tokens)


def _of_completion(fields: Mapping[str, Any], tokenizer: Tokenizer) -> Encoded:
    prompt = _begun(tokenizer.encode(fields["prompt"]), tokenizer)
    answer = [*tokenizer.encode(fields["completion"], add_special_tokens=False), *_end(tokenizer)]
    return [*prompt, *answer], [False] * len(prompt) + [True] * len(answer)


def _of_messages(fields: Mapping[str, Any], tokenizer: Tokenizer) -> Encoded:
    """The template's own tokens; learned are those that it adds to a dialogue when the assistant has answered."""
    messages = checked(fields["messages"])
    tokens = encode_chat(tokenizer, messages, add_generation_prompt=False)
    is_learned = [False] * len(tokens)
    for number, message in enumerate(messages):
        if message["role"] == "assistant":
            asked = encode_chat(tokenizer, messages[:number]) if number else tokens[:1]
            answered = encode_chat(tokenizer, messages[: number + 1], add_generation_prompt=False)
            first, stop = _agreeing(asked, tokens), _agreeing(answered, tokens)
            if first < len(asked) - MERGED or stop < len(answered):
                raise UsageError(
                    f"the chat template writes message {number + 1} otherwise once others follow, so its tokens "
                    "cannot be separated: put what follows into records of its own"
                )
            is_learned[first:stop] = [True] * (stop - first)
    return tokens, is_learned


FORMS: Mapping[str, Callable[[Mapping[str, Any], Tokenizer], Encoded]] = {
    "text": _of_text,
    "prompt": _of_completion,
    "messages": _of_messages,
}


def _agreeing(some: Sequence[int], others: Sequence[int]) -> int:
    """How many tokens two texts have in common from their start."""
    pairs = zip(some, others, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(some), len(others)))


def _begun(tokens: list[int], tokenizer: Tokenizer) -> list[int]:
    """The tokens of a text, without the end that some tokenizers add, and with a beginning if there is one."""
    while tokens and tokens[-1] in tokenizer.eos_token_ids:
        tokens = tokens[:-1]
    bos = tokenizer.bos_token_id
    return tokens if bos is None or tokens[:1] == [bos] else [bos, *tokens]


def _end(tokenizer: Tokenizer) -> list[int]:
    return [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
