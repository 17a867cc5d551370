"""Attributes and methods that transformers' Trainer and pipelines, peft and accelerate expect of a model."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from llamita.cache.cache import Cache
from llamita.config import LlamaConfig
from llamita.errors import UnsupportedError, UsageError
from llamita.model.initial import initialize_tree


class Familiar(nn.Module):
    """Attributes and methods that other libraries use; no pass of the model needs them."""

    config_class = LlamaConfig
    main_input_name = "input_ids"
    accepts_loss_kwargs = True  # forward divides the loss by num_items_in_batch
    supports_gradient_checkpointing = True
    is_parallelizable = False
    input_modalities = "text"
    output_modalities = ("text",)
    model_tags: list[str] | None = None
    name_or_path: str = ""  # the folder or the name on the hub that the model was read from
    _no_split_modules: ClassVar[list[str]] = []
    _keys_to_ignore_on_save: ClassVar[list[str] | None] = None

    @property
    def loss_type(self) -> str:
        """transformers' name of the loss: the class's own name without the architecture."""
        return next((kind.__name__ for kind in type(self).__mro__ if kind.__name__.startswith("LlamaFor")), "")[5:]

    def get_parameter_or_buffer(self, target: str) -> Tensor:
        """The parameter or else the buffer of this name; AttributeError where there is neither."""
        try:
            return self.get_parameter(target)
        except AttributeError:
            return self.get_buffer(target)

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """The bytes of the weights, each tied one counted once, and of the buffers."""
        tensors: list[Tensor] = [*self.parameters(), *(self.buffers() if return_buffers else ())]
        return sum(tensor.nelement() * tensor.element_size() for tensor in tensors)

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        *,
        next_sequence_length: int | None = None,
        past_key_values: Cache | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        is_first_iteration: bool = False,
        **others: Any,
    ) -> dict[str, Any]:
        """The arguments of a pass over the last `next_sequence_length` tokens, all by default.

        For other libraries' loops: our `generate` does not use it. Other arguments are returned as they are.
        """
        last = slice(None) if next_sequence_length is None else slice(-next_sequence_length, None)
        positions = others.pop("position_ids", None)
        if inputs_embeds is not None and is_first_iteration:
            inputs: dict[str, Any] = {"input_ids": None, "inputs_embeds": inputs_embeds[:, last].contiguous()}
            length = inputs["inputs_embeds"].shape[1]
        else:
            inputs = {"input_ids": input_ids[:, last].contiguous()}
            length = inputs["input_ids"].shape[1]
        given = {"past_key_values": past_key_values, "attention_mask": attention_mask}
        given["position_ids"] = None if positions is None else positions[..., -length:].contiguous()
        others.pop("labels", None)
        return inputs | {name: value for name, value in given.items() if value is not None} | others

    def check_inputs_are_own(self) -> None:
        """Raise UnsupportedError where another library makes this model's inputs, which `generate` does itself."""
        put = self.__dict__.get("prepare_inputs_for_generation")
        if put is not None and getattr(put, "__func__", None) is not type(self).prepare_inputs_for_generation:
            raise UnsupportedError(
                "generate makes its own inputs, so the prepare_inputs_for_generation that was put on this model (by "
                "peft's prompt learning?) would have no effect: call forward, or use LoRA"
            )

    def compute_transition_scores(
        self,
        sequences: Tensor,
        scores: Sequence[Tensor],
        beam_indices: Tensor | None = None,
        normalize_logits: bool = False,
    ) -> Tensor:
        """The score of each token that was written, (B, new), from `generate`'s sequences, scores and beam_indices.

        normalize_logits: make log-probabilities of scores that are logits.
        """
        steps = torch.stack(tuple(scores))  # (new, rows, V)
        if normalize_logits:
            steps = steps.permute(1, 2, 0).log_softmax(1).permute(2, 0, 1)  # laid out and so rounded as there
        if beam_indices is None:
            beam_indices = torch.arange(steps.shape[1], device=sequences.device)[:, None].expand(-1, len(steps))
        written = int((beam_indices >= 0).sum(-1).max())
        rows, ended = beam_indices[:, :written].long(), beam_indices[:, :written] < 0
        tokens = sequences[:, sequences.shape[-1] - written :]
        at = torch.arange(written, device=sequences.device).expand_as(tokens)
        return steps[at, rows.clamp(min=0), tokens].masked_fill(ended, 0)

    def init_weights(self) -> None:
        """Give first values to what has none, and tie what the config ties."""
        owner = cast("Any", self)
        initialize_tree(self, std=owner.config.initializer_range)
        owner.tie_weights()

    def get_decoder(self) -> nn.Module:
        """The model without its head."""
        return cast("Any", self).base_model

    def set_decoder(self, decoder: nn.Module) -> None:
        """Put another model without a head in its place. Raises UsageError for a model that has no head."""
        owner = cast("Any", self)
        if owner.base_model is self:
            raise UsageError(f"a {type(self).__name__} has no head, so that all of it is the decoder: use the new one")
        setattr(self, owner.base_model_prefix, decoder)

    def add_model_tags(self, tags: Sequence[str] | str) -> None:
        """Keep words for a model card, as trainers do."""
        new = [tags] if isinstance(tags, str) else list(tags)
        self.model_tags = [*dict.fromkeys([*(self.model_tags or []), *new])]

    def activation_checkpointing_enable(
        self,
        activation_checkpointing_kwargs: Mapping[str, bool] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """`gradient_checkpointing_enable` under its newer name."""
        cast("Any", self).gradient_checkpointing_enable(activation_checkpointing_kwargs, every_n_layers, offload)

    def activation_checkpointing_disable(self) -> None:
        """`gradient_checkpointing_disable` under its newer name."""
        cast("Any", self).gradient_checkpointing_disable()

    @property
    def is_activation_checkpointing(self) -> bool:
        """`is_gradient_checkpointing` under its newer name."""
        return cast("Any", self).is_gradient_checkpointing
