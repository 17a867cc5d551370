"""What a training task is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from llamita.data.documents import Document
from llamita.data.loader import Batch
from llamita.data.records import Record
from llamita.model.llama import LlamaForCausalLM
from llamita.tokenizer.protocol import Tokenizer


@dataclass(frozen=True, slots=True)
class Task:
    """What one kind of training is: documents of records, and the summed loss () of a batch, in fp32."""

    documents: Callable[[Sequence[Record], Tokenizer], list[Document]]
    loss: Callable[[LlamaForCausalLM, Batch], Tensor]
