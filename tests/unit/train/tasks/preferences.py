"""Made-up preferences and a tiny model, for the tests of the tasks that learn from them."""

import torch

from llamita.data.documents import IGNORED, Document
from llamita.data.loader import Batch, take
from llamita.data.packing import Rows, pack
from llamita.model.llama import LlamaForCausalLM
from tests.unit.train.tiny import CONFIG

LENGTH = 32


def make_model(seed: int = 0) -> LlamaForCausalLM:
    """A tiny model without dropout, in fp64."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(CONFIG.replace(attention_dropout=0.0, max_position_embeddings=LENGTH)).double().eval()


def make_pairs(count: int = 7, *, rated: bool = False) -> list[Document]:
    """Pairs of answers of different lengths after prompts of different lengths."""
    generator = torch.Generator().manual_seed(2)
    documents = []
    for number in range(count):
        texts = []
        prompt = torch.randint(0, 31, (2 + number % 3,), generator=generator, dtype=torch.int32)
        for extra in (2 + number % 4, 1 + number % 5):
            ids = torch.cat([prompt, torch.randint(0, 31, (extra,), generator=generator, dtype=torch.int32)])
            targets = ids[1:].clone()
            targets[: len(prompt) - 1] = IGNORED
            texts.append((ids[:-1], targets))
        inputs, targets = (torch.cat(parts) for parts in zip(*texts, strict=True))
        label = (1.0, -1.0, 1.0)[number % 3] if rated else 0.0
        documents.append(Document(inputs, targets, False, starts=(0, len(texts[0][0])), label=label))
    return documents


def make_rows(*, rated: bool = False) -> Rows:
    """The pairs in rows, several in most of them."""
    return pack(make_pairs(rated=rated), LENGTH)


def whole(rows: Rows) -> Batch:
    """All rows as one batch."""
    return take(rows, torch.arange(len(rows)))


def summed(model: LlamaForCausalLM, document: Document) -> list[torch.Tensor]:
    """The log-probabilities of the two texts of a document, each computed alone by the plain model."""
    found = []
    for first, stop in ((0, document.starts[1]), (document.starts[1], len(document))):
        logits = model(document.inputs[None, first:stop].long(), use_cache=False).logits[0]
        targets = document.targets[first:stop].long()
        kept = targets != IGNORED
        found.append(logits.log_softmax(-1)[kept].gather(1, targets[kept, None]).sum())
    return found
