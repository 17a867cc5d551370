"""A reward model: one number a text, learned from pairs (Bradley-Terry, arXiv:2203.02155)."""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from llamita.data.documents import Document
from llamita.data.loader import Batch
from llamita.data.records import Record
from llamita.model.heads import LlamaForSequenceClassification
from llamita.model.initial import shapes_only
from llamita.model.llama import LlamaForCausalLM
from llamita.model.loading import put
from llamita.model.pretrained import PreTrainedModel
from llamita.tokenizer.protocol import Tokenizer
from llamita.train.tasks.preferences import pair_documents
from llamita.train.tasks.task import Task, TaskOptions
from llamita.train.tasks.texts import last_tokens, pair_count, pairs, sums


def reward(options: TaskOptions) -> Task:
    """The task; it has no options."""
    return Task(
        documents=_documents,
        loss=_loss,
        count=pair_count,
        unit="pair",
        figures=_figures,
        figure_names=("accuracy", "margin"),
        is_reward=True,
    )


def with_reward_head(model: LlamaForCausalLM, *, seed: int) -> LlamaForSequenceClassification:
    """A classifier of one label on the layers of a language model; its head begins with the seed's numbers.

    Where the model is on the meta device, so is the head: `first_head` gives it these once it is read.
    """
    with shapes_only():
        classifier = LlamaForSequenceClassification(model.config.replace(num_labels=1))
    classifier.model = model.model
    if model.device.type != "meta":
        first_head(classifier, seed=seed, device=model.device)
    return classifier


def first_head(classifier: PreTrainedModel, *, seed: int, device: torch.device) -> None:
    """Give a reward model's head the seed's numbers; of a sharded one each process keeps its own part."""
    empty, generator = classifier.get_parameter("score.weight"), torch.Generator().manual_seed(seed)
    weight = torch.empty(empty.shape, device="cpu").normal_(
        0.0, classifier.config.initializer_range, generator=generator
    )
    put(classifier, "score.weight", classifier.fit(weight, empty, dtype=classifier.dtype, device=device, copies=True))


def rewards(model: LlamaForSequenceClassification, batch: Batch) -> tuple[Tensor, Tensor]:
    """The rewards of the chosen and the rejected texts, each read at its last token: both (pairs,), in fp32 or fp64."""
    outputs = model.base_model(batch.inputs, position_ids=batch.positions, use_cache=False, return_dict=True)
    scores = model.score(outputs.last_hidden_state)[..., 0]  # (B, T)
    scores = scores if scores.dtype == torch.float64 else scores.float()
    return pairs(sums(torch.where(last_tokens(batch), scores, 0.0), batch), batch)


def _documents(records: Sequence[Record], tokenizer: Tokenizer) -> list[Document]:
    return pair_documents(records, tokenizer, reads_end=True)


def _loss(model: LlamaForCausalLM, batch: Batch) -> Tensor:
    chosen, rejected = rewards(cast("LlamaForSequenceClassification", model), batch)
    return -F.logsigmoid(chosen - rejected).sum()


def _figures(model: LlamaForCausalLM, batch: Batch) -> Mapping[str, Tensor]:
    chosen, rejected = rewards(cast("LlamaForSequenceClassification", model), batch)
    return {"accuracy": (chosen > rejected).sum(), "margin": (chosen - rejected).sum()}
