"""Training tasks as a table: which documents a record becomes, and the loss of a batch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from llamita.data.documents import IGNORED, Document, make_documents
from llamita.data.loader import Batch
from llamita.data.records import Record
from llamita.errors import UsageError
from llamita.model import loss as losses
from llamita.model.llama import LlamaForCausalLM
from llamita.tokenizer.protocol import Tokenizer

CHUNK = 4096  # tokens whose logits are in memory at once


@dataclass(frozen=True, slots=True)
class Task:
    """What one kind of training is: documents of records, and the summed loss () of a batch, in fp32."""

    documents: Callable[[Sequence[Record], Tokenizer], list[Document]]
    loss: Callable[[LlamaForCausalLM, Batch], Tensor]


def token_losses(model: LlamaForCausalLM, batch: Batch) -> Tensor:
    """The sum () of the cross-entropies of all learned tokens, in nats and fp32; documents do not see each other."""
    hidden_states = model.model(
        batch.inputs, position_ids=batch.positions, use_cache=False, return_dict=True
    ).last_hidden_state
    is_learned = batch.targets != IGNORED
    learned, targets = hidden_states[is_learned], batch.targets[is_learned]  # (n, D), (n,)
    if len(targets) > CHUNK:
        return losses.chunked_cross_entropy(learned, model.lm_head, targets, chunk=CHUNK, num_items=1)
    return losses.cross_entropy(model.lm_head(learned).float(), targets, num_items=1)


def _pretrain(records: Sequence[Record], tokenizer: Tokenizer) -> list[Document]:
    return make_documents(records, tokenizer, learns_all=True)


def _sft(records: Sequence[Record], tokenizer: Tokenizer) -> list[Document]:
    if plain := next((record for record in records if not record.is_masked), None):
        raise UsageError(f"{plain.where} has no prompt, which sft needs: give prompts or messages, or --task pretrain")
    return make_documents(records, tokenizer, learns_all=False)


TASKS: Mapping[str, Task] = {"pretrain": Task(_pretrain, token_losses), "sft": Task(_sft, token_losses)}


def task_of(records: Sequence[Record]) -> str:
    """The task that fits the data: sft where every record has a prompt, else pretrain."""
    return "sft" if all(record.is_masked for record in records) else "pretrain"
