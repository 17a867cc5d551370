"""What users of a pretrained model rely on: init, loading, saving, embeddings, recompute."""

from collections.abc import Mapping
from math import prod
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from llamita.config import LlamaConfig
from llamita.errors import UnsupportedError, UsageError
from llamita.model import plan, vocabulary
from llamita.model.files import ModelFiles
from llamita.model.files import chosen_device as chosen_device
from llamita.model.files import chosen_dtype as chosen_dtype
from llamita.model.generation_config import GenerationConfig, fields_of
from llamita.model.loading import LoadReport
from llamita.model.stored import StoredWeight


class PreTrainedModel(ModelFiles):
    """The base of all models: a config, weights with a rule for their first values, and files to keep both in.

    Raises UsageError for a config that is no LlamaConfig.
    """

    base_model_prefix = ""
    _tied_weights_keys: ClassVar[Mapping[str, str]] = {}

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        if not isinstance(config, LlamaConfig):
            raise UsageError(
                f"{type(self).__name__} got a {type(config).__module__}.{type(config).__name__} as its config: "
                "pass llamita.LlamaConfig, for example LlamaConfig.from_dict(config.to_dict())"
            )
        self.config = config
        self.name_or_path = str(config.name_or_path or "")
        self._generation_config = GenerationConfig.of(config) if self.can_generate() else GenerationConfig()
        self.load_report = LoadReport()
        self._input_hook: RemovableHandle | None = None

    def post_init(self) -> None:
        """Called at the end of a model's __init__: first values, ties, the old recompute switch."""
        self.init_weights()
        if self.config.extra.get("gradient_checkpointing"):
            self.gradient_checkpointing_enable()

    # Choices

    def set_attn_implementation(self, name: str) -> None:
        """Attend by another backend from now on; raises UnsupportedError (a ValueError) for an unknown one."""
        config = self.config.replace(attn_implementation=name)
        for module in self.modules():
            if isinstance(module, PreTrainedModel):
                module.config = config

    @classmethod
    def can_generate(cls) -> bool:
        """Whether the model says what token comes next."""
        return "lm_head.weight" in cls._tied_weights_keys

    def finish(self, output: Any, return_dict: bool | None) -> Any:
        """An output as it was asked for: the record, or the tuple of an argument or a config that say so."""
        return_dict = self.config.extra.get("return_dict", True) if return_dict is None else return_dict
        return output if return_dict else output.to_tuple()

    # Facts

    @property
    def generation_config(self) -> GenerationConfig:
        """How the model writes unless a call says otherwise: a dictionary, whose names are attributes too."""
        return self._generation_config

    @generation_config.setter
    def generation_config(self, value: Any) -> None:
        self._generation_config = value if isinstance(value, GenerationConfig) else GenerationConfig(fields_of(value))

    @property
    def base_model(self) -> nn.Module:
        """The model without its head."""
        return getattr(self, self.base_model_prefix, self)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the floating-point weights."""
        return next(p.dtype for p in self.parameters() if p.is_floating_point())

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def cache_config(self) -> LlamaConfig:
        """The config that its caches are made by: of a model that several processes share, with this one's heads."""
        heads, processes = self.config.num_key_value_heads, plan.processes_of(self)
        return self.config if processes == 1 else self.config.replace(num_key_value_heads=heads // processes)

    def num_parameters(self, *, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """How many numbers the weights are, each tied one counted once."""
        skipped = set()
        if exclude_embeddings:
            skipped = {id(p) for m in self.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
        counted = [p for p in self.parameters() if id(p) not in skipped and (p.requires_grad or not only_trainable)]
        return sum(p.numel() for p in counted) + (0 if only_trainable else self._quantized(exclude_embeddings))

    def _quantized(self, exclude_embeddings: bool) -> int:
        """How many numbers are in quantized matrices, which are no parameters."""
        found: dict[int, int] = {}
        for module in self.modules():
            if isinstance(module, StoredWeight) and not (exclude_embeddings and hasattr(module, "num_embeddings")):
                found[id(module.matrix)] = prod(module.matrix.shape)
        return sum(found.values())

    # Embeddings

    def get_input_embeddings(self) -> nn.Embedding:
        """The token embedding (V, D)."""
        return cast("nn.Embedding", self.base_model.embed_tokens)

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Put another token embedding in its place."""
        self.base_model.embed_tokens = value

    def get_output_embeddings(self) -> nn.Module | None:
        """The head (D -> V) of a language model, None of others."""
        return getattr(self, "lm_head", None)

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Put another language-model head in its place."""
        self.lm_head = value

    @property
    def tied_weights(self) -> Mapping[str, str]:
        """Names of weights that are another's twin -> that other's name; empty unless the config ties them."""
        return self._tied_weights_keys if self.config.tie_word_embeddings else {}

    def tie_weights(self) -> None:
        """Make each tied weight the very tensor of its twin; a stage of a model may have one of the two, or neither."""
        here = dict(self.named_parameters(remove_duplicate=False))
        for name, source in self.tied_weights.items():
            if name in here and source in here:
                owner, _, leaf = name.rpartition(".")
                setattr(self.get_submodule(owner), leaf, here[source])

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """Cut or extend the vocabulary of embedding and head; returns the embedding.

        Old rows stay; new ones start near the mean of the old (`mean_resizing`) or at normal(0, initializer_range).
        Raises UsageError for a size that cannot be, and UnsupportedError for an embedding or a head that is quantized.
        """
        size = vocabulary.new_size(self.config.vocab_size, new_num_tokens, pad_to_multiple_of)
        if size == self.config.vocab_size:
            return self.get_input_embeddings()
        config = self.config.replace(vocab_size=size)  # first: it refuses to lose a special token
        head = self.get_output_embeddings()
        resized = [self.get_input_embeddings(), *([head] if head is not None and not self.tied_weights else [])]
        if any(isinstance(module, StoredWeight) for module in (self.get_input_embeddings(), head)):
            raise UnsupportedError(
                "quantized embeddings and heads keep their vocabulary: resize the model they come from, then quantize"
            )
        for module in resized:
            vocabulary.resize_module(module, size, std=self.config.initializer_range, from_mean=mean_resizing)
        if isinstance(head, nn.Linear):
            head.out_features = size
        for module in self.modules():
            if isinstance(module, PreTrainedModel):
                module.config = config
                if hasattr(module, "vocab_size"):
                    vars(module)["vocab_size"] = size
        self.tie_weights()
        return self.get_input_embeddings()

    # Training

    def gradient_checkpointing_enable(
        self,
        gradient_checkpointing_kwargs: Mapping[str, bool] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """Keep only the input of every n-th layer and compute the rest again in the backward pass.

        Raises UnsupportedError for offload, and UsageError for other options than use_reentrant.
        """
        if offload:
            raise UnsupportedError("recompute keeps what it saves on the model's device: leave offload out")
        options = dict(gradient_checkpointing_kwargs or {})
        use_reentrant = options.pop("use_reentrant", False)
        if options:
            raise UsageError(f"gradient_checkpointing_kwargs has {', '.join(options)}: only use_reentrant is known")
        from llamita.plans import recompute

        recompute.enable(self, list(self._layers), every_n_layers=every_n_layers, use_reentrant=use_reentrant)

    def gradient_checkpointing_disable(self) -> None:
        """Keep all activations again."""
        plan.remove(self, "recompute")

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether any layer is computed again in the backward pass."""
        return any(plan.plan_of(layer) == "recompute" for layer in self._layers)

    @property
    def _layers(self) -> nn.ModuleList:
        return cast("nn.ModuleList", self.base_model.layers)

    def enable_input_require_grads(self) -> None:
        """Let gradients reach the embeddings' output, as adapters on frozen weights need with recompute."""
        self.disable_input_require_grads()
        self._input_hook = self.get_input_embeddings().register_forward_hook(_require_grad)

    def disable_input_require_grads(self) -> None:
        """Undo `enable_input_require_grads`."""
        if self._input_hook is not None:
            self._input_hook.remove()
            self._input_hook = None


class LlamaPreTrainedModel(PreTrainedModel):
    """The base of all Llamas."""

    base_model_prefix = "model"
    _no_split_modules: ClassVar[list[str]] = ["LlamaDecoderLayer"]

    def generate(self, input_ids: Tensor | None = None, generation_config: Any = None, **options: Any) -> Any:
        """Continue token ids (B, T): a tensor, or the record that `return_dict_in_generate` asks for.

        The options are those of `llamita.generation.hf.generate`.
        """
        self.check_inputs_are_own()
        from llamita.generation.hf import generate

        return generate(cast("Any", self), input_ids, generation_config=generation_config, **options)


def _require_grad(module: nn.Module, inputs: object, output: Tensor) -> None:
    output.requires_grad_(True)
