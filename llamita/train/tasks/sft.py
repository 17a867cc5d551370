"""Supervised fine-tuning: completions and the assistant's messages are learned, and prompts are not."""

from collections.abc import Sequence
from functools import partial

from llamita.data.documents import Document, make_documents
from llamita.data.records import Record
from llamita.errors import UsageError
from llamita.tokenizer.protocol import Tokenizer
from llamita.train.tasks.task import Task, TaskOptions
from llamita.train.tasks.token_loss import token_losses


def _documents(records: Sequence[Record], tokenizer: Tokenizer) -> list[Document]:
    if plain := next((record for record in records if not record.is_masked), None):
        raise UsageError(f"{plain.where} has no prompt, which sft needs: give prompts or messages, or --task pretrain")
    return make_documents(records, tokenizer, learns_all=False)


def sft(options: TaskOptions) -> Task:
    """The task, with z_loss."""
    return Task(documents=_documents, loss=partial(token_losses, z_loss=options.z_loss))
