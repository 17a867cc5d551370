"""Pre-training: every token is learned."""

from collections.abc import Sequence
from functools import partial

from llamita.data.documents import Document, make_documents
from llamita.data.records import Record
from llamita.tokenizer.protocol import Tokenizer
from llamita.train.tasks.task import Task, TaskOptions
from llamita.train.tasks.token_loss import token_losses


def _documents(records: Sequence[Record], tokenizer: Tokenizer) -> list[Document]:
    return make_documents(records, tokenizer, learns_all=True)


def pretrain(options: TaskOptions) -> Task:
    """The task, with z_loss."""
    return Task(documents=_documents, loss=partial(token_losses, z_loss=options.z_loss))
