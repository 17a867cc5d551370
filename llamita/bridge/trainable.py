"""Our models as transformers' own class: what its Trainer, TRL and peft ask for by type before they save one whole."""

from typing import Any, TypeVar

from torch import nn

from llamita.errors import UnsupportedError, UsageError
from llamita.model import heads, llama
from llamita.model.pretrained import PreTrainedModel

try:
    import transformers
    from transformers import modeling_outputs
except ImportError:
    raise UnsupportedError("transformers is not installed: pip install 'llamita[bridge]'") from None

M = TypeVar("M", bound=PreTrainedModel)


class Peer(transformers.PreTrainedModel):
    """A second base class of our models, so that they pass isinstance checks; our own methods come first."""

    def __init__(self) -> None:
        nn.Module.__init__(self)


class Outputs(PreTrainedModel):
    """A first base class, which gives transformers' records: its Trainer takes no others for dictionaries."""

    def finish(self, output: Any, return_dict: bool | None) -> Any:
        """The output as it was asked for, a record under transformers' class of the same name."""
        output = super().finish(output, return_dict)
        kind = getattr(modeling_outputs, type(output).__name__, None)
        return output if kind is None else kind(**dict(output.items()))


class LlamaModel(Outputs, llama.LlamaModel, Peer):  # pyright: ignore
    """llamita.LlamaModel, and a transformers.PreTrainedModel."""


class LlamaForCausalLM(Outputs, llama.LlamaForCausalLM, Peer):  # pyright: ignore
    """llamita.LlamaForCausalLM, and a transformers.PreTrainedModel."""


class LlamaForSequenceClassification(Outputs, heads.LlamaForSequenceClassification, Peer):  # pyright: ignore
    """llamita.LlamaForSequenceClassification, and a transformers.PreTrainedModel."""


class LlamaForTokenClassification(Outputs, heads.LlamaForTokenClassification, Peer):  # pyright: ignore
    """llamita.LlamaForTokenClassification, and a transformers.PreTrainedModel."""


class LlamaForQuestionAnswering(Outputs, heads.LlamaForQuestionAnswering, Peer):  # pyright: ignore
    """llamita.LlamaForQuestionAnswering, and a transformers.PreTrainedModel."""


class LlamaForReward(Outputs, heads.LlamaForReward, Peer):  # pyright: ignore
    """llamita.LlamaForReward, and a transformers.PreTrainedModel."""


class LlamaForEmbedding(Outputs, heads.LlamaForEmbedding, Peer):  # pyright: ignore
    """llamita.LlamaForEmbedding, and a transformers.PreTrainedModel."""


KINDS: dict[type, Any] = {
    kind.__bases__[1]: kind
    for kind in (
        LlamaModel,
        LlamaForCausalLM,
        LlamaForSequenceClassification,
        LlamaForTokenClassification,
        LlamaForQuestionAnswering,
        LlamaForReward,
        LlamaForEmbedding,
    )
}


def trainable(model: M) -> M:
    """The same model, from now on also a transformers.PreTrainedModel; its weights and its arithmetic stay.

    `transformers.Trainer` trains a model without it, but saves one whole only if its type is known.
    Raises UsageError for a model of a class that is not ours.
    """
    if not isinstance(model, transformers.PreTrainedModel):
        if type(model) not in KINDS:
            known = ", ".join(kind.__name__ for kind in KINDS)
            raise UsageError(f"{type(model).__name__} is no class of llamita's: make one of {known} trainable")
        model.__class__ = KINDS[type(model)]
    if model.name_or_path:
        model.config.update({"_name_or_path": model.name_or_path})  # what peft's card of an adapter calls its base
    return model
