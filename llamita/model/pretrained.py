"""What users of a pretrained model rely on: init, loading, saving, embeddings, recompute."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from llamita.checks import shortened
from llamita.config import DTYPES, LlamaConfig
from llamita.errors import UnsupportedError, UsageError
from llamita.model import recompute, vocabulary
from llamita.model.generation_config import GenerationConfig
from llamita.model.initial import initialize_tree, shapes_only
from llamita.model.invariant import invariant
from llamita.model.loading import LoadReport, MemoryTensors, Tensors, fill
from llamita.model.rope import LlamaRotaryEmbedding


class PreTrainedModel(nn.Module):
    """The base of all models: a config, weights with a rule for their first values, and files to keep both in."""

    main_input_name = "input_ids"
    base_model_prefix = ""
    _no_split_modules: ClassVar[list[str]] = []
    _tied_weights_keys: ClassVar[Mapping[str, str]] = {}

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        if not isinstance(config, LlamaConfig):
            raise UsageError(
                f"{type(self).__name__} got a {type(config).__module__}.{type(config).__name__} as its config: "
                "pass llamita.LlamaConfig, for example LlamaConfig.from_dict(config.to_dict())"
            )
        self.config = config
        self._generation_config = GenerationConfig.of(config) if self.can_generate() else GenerationConfig()
        self.load_report = LoadReport()
        self._input_hook: RemovableHandle | None = None

    def post_init(self) -> None:
        """Called at the end of a model's __init__: first values for what has none, ties, the old recompute switch."""
        initialize_tree(self, std=self.config.initializer_range)
        self.tie_weights()
        if self.config.extra.get("gradient_checkpointing"):
            self.gradient_checkpointing_enable()

    # Loading and saving

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path | None,
        *,
        config: LlamaConfig | None = None,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device = "auto",
        attn_implementation: str | None = None,
        numerics: str | None = None,
        num_labels: int | None = None,
        deterministic: bool = False,
        state_dict: Mapping[str, Tensor] | None = None,
        ignore_mismatched_sizes: bool = False,
        output_loading_info: bool = False,
        revision: str | None = None,
        local_files_only: bool = False,
    ) -> Self:
        """The model of a Hugging Face checkpoint: a folder, or a repository id on the hub.

        Built on the meta device, then given the file's own pages: no random init, and on the CPU no copy where the
        dtype fits. In eval mode, as everywhere. What did not fit is in `model.load_report`, and warned of.

        dtype: "auto" takes the config's, else the file's. device: "auto" takes CUDA where there is one.
        deterministic: batch-invariant mode, see `llamita.model.invariant`; attn_implementation is then its own.
        output_loading_info: return (model, report as a dict of lists) instead.
        Raises NotFoundError, BrokenFileError, UnsupportedError (quantized weights), UsageError (shapes that differ, a
        GGUF file, which `llamita.load` reads).
        """
        from llamita.files.checkpoint import open_checkpoint
        from llamita.files.hub import resolve

        path = resolve(str(folder), revision=revision, offline=local_files_only) if folder is not None else None
        if path is None and (config is None or state_dict is None):
            raise UsageError("without a folder, from_pretrained needs both config= and state_dict=")
        config = config or LlamaConfig.from_pretrained(cast("Path", path))
        tensors = open_checkpoint(cast("Path", path)) if state_dict is None else MemoryTensors(state_dict)
        choices = {"attn_implementation": attn_implementation, "numerics": numerics, "num_labels": num_labels}
        config = config.replace(
            dtype=chosen_dtype(dtype, config, tensors), **{name: value for name, value in choices.items() if value}
        )
        model = cls._from_tensors(config, tensors, device=chosen_device(device))
        report = model.load_report
        if report.mismatched_keys and not ignore_mismatched_sizes:
            raise UsageError(
                f"{folder} does not fit its config: {report}; ignore_mismatched_sizes=True starts these anew"
            )
        if str(report):
            warnings.warn(f"loading {folder}: {report}", stacklevel=2)
        model.generation_config = _read_generation_config(path, model.generation_config)
        model = invariant(model) if deterministic else model
        return cast("Self", (model, vars(report))) if output_loading_info else model

    @classmethod
    def _from_tensors(cls, config: LlamaConfig, tensors: Tensors, *, device: torch.device) -> Self:
        """A model with the checkpoint's weights in `config.dtype`, in eval mode; what did not fit starts anew."""
        if method := config.extra.get("quantization_config"):
            kind = method.get("quant_method", "an unnamed method") if isinstance(method, dict) else method
            raise UnsupportedError(f"this checkpoint is quantized by {shortened(kind)}: give one of plain weights")
        with shapes_only():
            model = cls(config)
        dtype, std = getattr(torch, str(config.dtype)), config.initializer_range
        model.load_report = fill(model, tensors, tied=model.tied_weights, std=std, dtype=dtype, device=device)
        model.tie_weights()
        for module in model.modules():
            if isinstance(module, LlamaRotaryEmbedding):
                module.reset(device)
        return model.eval()

    def save_pretrained(self, folder: str | Path, *, max_shard_size: int | str = "5GB") -> None:
        """Write config.json, safetensors (in shards, with an index, above `max_shard_size`) and generation_config.json.

        Each file appears whole or not at all. A tied head is left out; reading puts it back.
        """
        from llamita.files.write import save_checkpoint, write_json

        folder = Path(folder)
        tensors = {name: tensor for name, tensor in self.state_dict().items() if name not in self.tied_weights}
        save_checkpoint(tensors, folder, max_shard_size=max_shard_size)
        extra = {**self.config.extra, "architectures": [type(self).__name__]}
        self.config.replace(dtype=str(self.dtype).removeprefix("torch."), extra=extra).save_pretrained(folder)
        if self.generation_config:
            write_json(folder / "generation_config.json", self.generation_config)

    @classmethod
    def _from_config(cls, config: LlamaConfig, *, dtype: str | torch.dtype = "auto", **changes: Any) -> Self:
        """A model with first values; `changes` are run-time fields of the config, such as attn_implementation."""
        model = cls(config.replace(**changes) if changes else config)
        name = config.dtype or "float32" if dtype == "auto" else dtype
        return model.to(getattr(torch, name) if isinstance(name, str) else name)

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
    def generation_config(self, value: Mapping[str, Any]) -> None:
        self._generation_config = value if isinstance(value, GenerationConfig) else GenerationConfig(value)

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
            matrix = getattr(module, "matrix", None)
            if matrix is not None and not (exclude_embeddings and hasattr(module, "num_embeddings")):
                found[id(matrix)] = matrix.shape[0] * matrix.shape[1]
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
        """Make each tied weight the very tensor of its twin."""
        for name, source in self.tied_weights.items():
            owner, _, leaf = name.rpartition(".")
            setattr(self.get_submodule(owner), leaf, self.get_parameter(source))

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
        if any(hasattr(module, "matrix") for module in (self.get_input_embeddings(), head)):
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
        self, gradient_checkpointing_kwargs: Mapping[str, bool] | None = None, every_n_layers: int = 1
    ) -> None:
        """Keep only the input of every n-th layer and compute the rest again in the backward pass."""
        options = dict(gradient_checkpointing_kwargs or {})
        use_reentrant = options.pop("use_reentrant", False)
        if options:
            raise UsageError(f"gradient_checkpointing_kwargs has {', '.join(options)}: only use_reentrant is known")
        recompute.enable(self._layers, every_n_layers=every_n_layers, use_reentrant=use_reentrant)

    def gradient_checkpointing_disable(self) -> None:
        """Keep all activations again."""
        recompute.disable(self._layers)

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether any layer is computed again in the backward pass."""
        return any(recompute.is_recomputed(layer) for layer in self._layers)

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

    def generate(self, input_ids: Tensor | None = None, **options: Any) -> Any:
        """Continue token ids (B, T): a tensor, or the record that `return_dict_in_generate` asks for.

        The options are those of `llamita.generation.convention.generate`.
        """
        from llamita.generation.convention import generate

        return generate(self, input_ids, **options)


def chosen_dtype(dtype: str | torch.dtype, config: LlamaConfig, tensors: Any) -> str:
    """The name of the dtype to load in: the one asked for, or for "auto" the config's, or the files' own."""
    name = str(dtype).removeprefix("torch.")
    if name == "auto":
        own = (str(tensors.dtype(name)).removeprefix("torch.") for name in tensors.names)
        name = config.dtype or next((one for one in own if one in DTYPES), "float32")
    if name not in DTYPES:
        raise UsageError(f"dtype {name!r} is unknown: use auto or one of {', '.join(DTYPES)}")
    return name


def chosen_device(device: str | torch.device) -> torch.device:
    """The device asked for, checked; "auto" is CUDA where there is one, else the CPU."""
    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise UsageError(f"device {str(device)!r} is not available here: use auto or cpu") from None
    return chosen


def _read_generation_config(folder: Path | None, default: Mapping[str, Any]) -> Mapping[str, Any]:
    from llamita.files.disk import read_json

    path = None if folder is None else folder / "generation_config.json"
    return read_json(path) if path is not None and path.exists() else default


def _require_grad(module: nn.Module, inputs: object, output: Tensor) -> None:
    output.requires_grad_(True)
