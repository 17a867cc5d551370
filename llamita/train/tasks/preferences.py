"""Records of preferences as documents: pairs of answers in one document each, whose texts do not see each other."""

from collections.abc import Sequence
from typing import Any

import torch

from llamita.data.documents import Document, encode_answer, shifted
from llamita.data.records import Record
from llamita.errors import UsageError
from llamita.tokenizer.protocol import Tokenizer

Rated = tuple[Any, Any, bool, str]  # prompt, answer, whether it is good, where


def pair_documents(records: Sequence[Record], tokenizer: Tokenizer, *, reads_end: bool = False) -> list[Document]:
    """One document a pair: the chosen answer after the prompt, then the rejected one after the prompt.

    reads_end: the model reads the last token of each text too, after which nothing is learned.
    Raises UsageError for a record that is no pair, and for one whose answers are the same.
    """
    for record in records:
        if record.form != "pair":
            other = "--loss kto" if record.form == "rated completion" else "another --task"
            raise UsageError(f"{record.where} is no pair: give the fields prompt, chosen and rejected, or {other}")
        if record.fields["chosen"] == record.fields["rejected"]:
            raise UsageError(f"{record.where} has the same text as chosen and as rejected: mend or remove the line")
    return [
        _document(
            record.fields["prompt"],
            (record.fields["chosen"], record.fields["rejected"]),
            tokenizer,
            record.where,
            reads_end=reads_end,
        )
        for record in records
    ]


def rated_documents(records: Sequence[Record], tokenizer: Tokenizer) -> list[Document]:
    """One document a rated answer: it, and the answer of another prompt after this prompt, for KTO's baseline.

    The label is 1 for a good answer and -1 for another. A pair counts as a good answer and one that is not.
    Raises UsageError for other records, and for fewer than two.
    """
    rated = [one for record in records for one in _rated(record)]
    if len(rated) < 2:
        raise UsageError("kto compares answers with those of other prompts, and the data has one answer: give more")
    shifted_answers = [answer for _, answer, _, _ in (*rated[1:], rated[0])]
    return [
        _document(prompt, (answer, other), tokenizer, where, label=1.0 if is_good else -1.0)
        for (prompt, answer, is_good, where), other in zip(rated, shifted_answers, strict=True)
    ]


def _rated(record: Record) -> list[Rated]:
    fields = record.fields
    if record.form == "rated completion":
        return [(fields["prompt"], fields["completion"], bool(fields["label"]), record.where)]
    if record.form == "pair":
        return [(fields["prompt"], fields[name], name == "chosen", record.where) for name in ("chosen", "rejected")]
    raise UsageError(f"{record.where} has no rating: give the fields prompt, completion and label (true or false)")


def _document(
    prompt: Any,
    answers: tuple[Any, Any],
    tokenizer: Tokenizer,
    where: str,
    *,
    label: float = 0.0,
    reads_end: bool = False,
) -> Document:
    try:
        encoded = [encode_answer(prompt, answer, tokenizer) for answer in answers]
        if reads_end:  # by a copy of the last token, which is then no input but a target
            encoded = [([*tokens, tokens[-1]], [*is_learned, True]) for tokens, is_learned in encoded]
        texts = [shifted(tokens, is_learned, where) for tokens, is_learned in encoded]
    except UsageError as error:
        raise error if str(error).startswith(where) else UsageError(f"{where}: {error}") from error
    inputs, targets = (torch.cat(parts) for parts in zip(*texts, strict=True))
    return Document(inputs, targets, is_splittable=False, where=where, starts=(0, len(texts[0][0])), label=label)
