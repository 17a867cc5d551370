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
    starts: where its texts begin; they do not see each other, and stay in one row: those of a pair.
    label: a number that the task knows of it.
    """

    inputs: Tensor
    targets: Tensor
    is_splittable: bool
    where: str = ""
    starts: tuple[int, ...] = (0,)
    label: float = 0.0

    def __len__(self) -> int:
        return len(self.inputs)


def make_documents(records: Iterable[Record], tokenizer: Tokenizer, *, learns_all: bool) -> list[Document]:
    """The documents of records. learns_all: learn prompts and the user's messages too.

    Raises UsageError for a record of which nothing can be learned, and for messages that the template refuses.
    """
    return [_document(record, tokenizer, learns_all=learns_all) for record in records]


def _document(record: Record, tokenizer: Tokenizer, *, learns_all: bool) -> Document:
    encode = FORMS.get(record.form or "")
    if encode is None:
        raise UsageError(
            f"{record.where} is a {record.form}: give a text, prompt and completion, or messages, or another --task"
        )
    try:
        tokens, is_learned = encode(record.fields, tokenizer)
    except UsageError as error:
        raise UsageError(f"{record.where}: {error}") from error
    if learns_all:
        is_learned = [True] * len(tokens)
    inputs, targets = shifted(tokens, is_learned, record.where)
    return Document(inputs, targets, is_splittable=learns_all or not record.is_masked, where=record.where)


def shifted(tokens: list[int], is_learned: list[bool], where: str) -> tuple[Tensor, Tensor]:
    """The inputs (n,) and targets (n,) of a text of n + 1 tokens. Raises UsageError where nothing is learned."""
    ids = torch.tensor(tokens, dtype=torch.int32, device="cpu")
    targets = torch.where(torch.tensor(is_learned[1:], dtype=torch.bool, device="cpu"), ids[1:], IGNORED)
    if not bool((targets != IGNORED).any()):
        raise UsageError(f"{where} has no token to learn: give it a text, a completion or an assistant's message")
    return ids[:-1], targets


Encoded = tuple[list[int], list[bool]]


def _of_text(fields: Mapping[str, Any], tokenizer: Tokenizer) -> Encoded:
    tokens = [*_begun(tokenizer.encode(fields["text"]), tokenizer), *_end(tokenizer)]
    return tokens, [True] * len(tokens)


def _of_completion(prompt: str, completion: str, tokenizer: Tokenizer) -> Encoded:
    asked = encode_prompt(prompt, tokenizer)
    answer = [*tokenizer.encode(completion, add_special_tokens=False), *_end(tokenizer)]
    return [*asked, *answer], [False] * len(asked) + [True] * len(answer)


def _of_answer(fields: Mapping[str, Any], tokenizer: Tokenizer) -> Encoded:
    return encode_answer(fields["prompt"], fields["completion"], tokenizer)


def encode_answer(prompt: Any, answer: Any, tokenizer: Tokenizer) -> Encoded:
    """The tokens of a prompt and its answer, both texts or both messages, and which are learned: the answer's.

    Raises UsageError where one is a text and the other messages.
    """
    if isinstance(prompt, str) and isinstance(answer, str):
        return _of_completion(prompt, answer, tokenizer)
    if isinstance(prompt, list) and isinstance(answer, list):
        return _of_dialogue(prompt + answer, tokenizer, first=len(prompt))
    raise UsageError("one part is a text and another messages: give texts or messages for both")


def encode_prompt(prompt: str | list[Any], tokenizer: Tokenizer) -> list[int]:
    """The tokens of a prompt that waits for its answer."""
    if isinstance(prompt, str):
        return _begun(tokenizer.encode(prompt), tokenizer)
    return list(encode_chat(tokenizer, checked(prompt)))


def _of_messages(fields: Mapping[str, Any], tokenizer: Tokenizer) -> Encoded:
    return _of_dialogue(fields["messages"], tokenizer)


def _of_dialogue(dialogue: Any, tokenizer: Tokenizer, *, first: int = 0) -> Encoded:
    """The template's own tokens; learned are those that it adds to a dialogue when the assistant has answered.

    first: the number of the first message that may be learned.
    """
    messages = checked(dialogue)
    tokens = encode_chat(tokenizer, messages, add_generation_prompt=False)
    is_learned = [False] * len(tokens)
    for number, message in enumerate(messages):
        if number >= first and message["role"] == "assistant":
            asked = encode_chat(tokenizer, messages[:number]) if number else tokens[:1]
            answered = encode_chat(tokenizer, messages[: number + 1], add_generation_prompt=False)
            start, stop = _agreeing(asked, tokens), _agreeing(answered, tokens)
            if start < len(asked) - MERGED or stop < len(answered):
                raise UsageError(
                    f"the chat template writes message {number + 1} otherwise once others follow, so its tokens "
                    "cannot be separated: put what follows into records of its own"
                )
            is_learned[start:stop] = [True] * (stop - start)
    return tokens, is_learned


FORMS: Mapping[str, Callable[[Mapping[str, Any], Tokenizer], Encoded]] = {
    "text": _of_text,
    "completion": _of_answer,
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
