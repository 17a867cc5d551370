"""transformers' side of the training bench, with peft's adapters."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from llamita.bench import models
from llamita.bridge import transformers as bridge
from llamita.config import LlamaConfig


def trained(config: LlamaConfig, method: str) -> tuple[Any, Callable[[Tensor, Tensor], Tensor]]:
    """transformers' model with our random weights, and the mean loss () of inputs and targets (B, T).

    lora and qlora are both peft's LoRA: its QLoRA is bitsandbytes', which trains on GPUs.
    """
    model = bridge.twin(models.to_train(config, method)).train()
    if method != "full":
        import peft

        model = peft.get_peft_model(model, peft.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))

    def loss(inputs: Tensor, targets: Tensor) -> Tensor:
        return model(inputs, labels=inputs, shift_labels=targets, use_cache=False).loss

    return model, loss
