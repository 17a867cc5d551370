"""Models read from a checkpoint and written as one, by the names that transformers' users type."""

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor

from llamita.checks import shortened
from llamita.config import DTYPES, LlamaConfig
from llamita.config.files import refuse_upload
from llamita.errors import NotFoundError, UnsupportedError, UsageError
from llamita.model.familiar import Familiar
from llamita.model.generation_config import GenerationConfig
from llamita.model.initial import shapes_only
from llamita.model.loading import LoadReport, MemoryTensors, Seen, Tensors, fill, whole
from llamita.model.names import check_names, check_save_names, one_device, one_dtype
from llamita.model.rope import LlamaRotaryEmbedding


class ModelFiles(Familiar):
    """Reading and writing of a model: config.json, weights, generation_config.json."""

    config: LlamaConfig
    load_report: LoadReport
    generation_config: Any

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path | None = None,
        *,
        config: LlamaConfig | str | Path | None = None,
        dtype: str | torch.dtype | None = None,
        torch_dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
        device_map: Any = None,
        device_mesh: Any = None,
        shard: Callable[[Any], object] | None = None,
        attn_implementation: str | None = None,
        numerics: str | None = None,
        deterministic: bool = False,
        state_dict: Mapping[str, Tensor] | None = None,
        ignore_mismatched_sizes: bool = False,
        output_loading_info: bool = False,
        revision: str | None = None,
        subfolder: str | None = "",
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        use_safetensors: bool | None = None,
        **changes: Any,
    ) -> Self:
        """The model of a Hugging Face checkpoint: a folder, or a repository id on the hub.

        Built on the meta device, then given the file's own pages: no random init, and on the CPU no copy where the
        dtype fits. In eval mode, as everywhere. What did not fit is in `model.load_report`, and warned of.

        dtype (or torch_dtype): "auto" takes the config's, else the file's. device (or a device_map of one device):
        "auto" takes CUDA where there is one. revision, subfolder, token, cache_dir, force_download, local_files_only:
        where on the hub, and how it is asked. use_safetensors: True insists on that format.
        device_mesh: a mesh of processes, over whose `tp` dim the model is sharded to write, see
        `llamita.parallel.tensor`; each process reads its own part of the files.
        shard: called with the model while it has no weights, to shard it (`llamita.parallel`, or FSDP2's fully_shard);
        each process then reads its own part of what that leaves.
        deterministic: batch-invariant mode, see `llamita.plans.invariant`; attn_implementation is then its own.
        output_loading_info: return (model, report as transformers' dict of sets) instead.
        changes: fields of the config, such as num_labels=3 or use_cache=False; `llamita.model.names` says of the other
        names of transformers which do nothing here, and which are refused.
        Raises NotFoundError, BrokenFileError, UnsupportedError (quantized weights), UsageError (shapes that differ, a
        name that is unknown, a GGUF file, which `llamita.load` reads).
        """
        from llamita.files.hub import resolve

        changes = check_names(changes)
        name, path = pretrained_model_name_or_path, None
        if name is not None:
            path = resolve(
                str(name), revision=revision, offline=local_files_only, subfolder=subfolder or "", token=token,
                cache_dir=cache_dir, force=force_download,
            )  # fmt: skip
        if path is None and (config is None or state_dict is None):
            raise UsageError("without a folder, from_pretrained needs both config= and state_dict=")
        if not isinstance(config, LlamaConfig):
            config = LlamaConfig.from_pretrained(cast("Path", path) if config is None else config_folder(config))
        tensors = MemoryTensors(state_dict) if state_dict is not None else opened(cast("Path", path), use_safetensors)
        choices = {"attn_implementation": attn_implementation, "numerics": numerics}
        changes |= {name: value for name, value in choices.items() if value}
        config = config.replace(**changes)
        config = config.replace(dtype=chosen_dtype(one_dtype(dtype, torch_dtype), config, tensors))
        on = chosen_device(one_device(device, device_map))
        check_plain(config)
        model = cls.without_weights(config)
        if device_mesh is not None:
            from llamita.parallel.tensor import shard_for_writing

            shard_for_writing(model, device_mesh)
        if shard is not None:
            shard(model)
        model.read_weights(tensors, device=on, copies=shard is not None)
        report = model.eval().load_report
        check_fit(report, name, ignore_mismatched_sizes=ignore_mismatched_sizes)
        model.name_or_path = "" if name is None else str(name)
        model.generation_config = read_generation_config(path, model.generation_config)
        if deterministic:
            from llamita.plans.invariant import invariant

            invariant(cast("Any", model))
        return cast("Self", (model, report.to_dict())) if output_loading_info else model

    @classmethod
    def without_weights(cls, config: LlamaConfig) -> Self:
        """A model on the meta device, whose weights are still to come: it may be sharded before they are read."""
        with shapes_only():
            return cast("Any", cls)(config)

    def read_weights(
        self, tensors: Tensors, *, device: torch.device, copies: bool = False, seen: Seen | None = None
    ) -> None:
        """Give a model without weights those of a checkpoint, in the config's dtype; others are initialized at random.

        Of a sharded model each process reads its own part. copies: that has memory of its own, for training; otherwise
        it may be the file's own pages. seen: as `fill` says. What did not fit is in `load_report`.
        """
        model, dtype = cast("Any", self), getattr(torch, str(self.config.dtype))
        std, fit = self.config.initializer_range, partial(self.fit, copies=copies)
        self.load_report = fill(
            model, tensors, tied=model.tied_weights, std=std, dtype=dtype, device=device, fit=fit, seen=seen
        )
        self.complete(device)

    @property
    def fit(self) -> Callable[..., Tensor]:
        """What makes a parameter of a whole weight: of a sharded model, of this process's part of it."""
        if not any(hasattr(weight, "placements") for weight in cast("Any", self).parameters()):
            return whole
        from llamita.parallel.slices import placed

        return placed

    def complete(self, device: torch.device) -> None:
        """Do what is left once a model on the meta device has its weights: ties, and the rotary frequencies."""
        cast("Any", self).tie_weights()
        for module in cast("Any", self).modules():
            if isinstance(module, LlamaRotaryEmbedding):
                module.reset(device)

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        max_shard_size: int | str = "5GB",
        safe_serialization: bool = True,
        push_to_hub: bool = False,
        **others: Any,
    ) -> None:
        """Write config.json, safetensors (in shards, with an index, above `max_shard_size`) and generation_config.json.

        Each file appears whole or not at all. A tied head is left out; reading puts it back.
        state_dict: weights to write in place of the model's own. is_main_process: only that one writes. others: names
        of transformers' that ask for nothing here; any other is refused.
        Raises UnsupportedError for a model with adapters, which has other names.
        """
        from llamita.files.write import save_checkpoint, write_json

        refuse_upload(push_to_hub)
        check_save_names(others)
        if not safe_serialization:
            raise UnsupportedError(
                "llamita writes safetensors only, as a pickled file can run code: leave safe_serialization out"
            )
        if not is_main_process:
            return
        folder, weights = Path(save_directory), self.state_dict() if state_dict is None else state_dict
        if any(".base_layer." in name for name in weights):
            raise UnsupportedError(
                "the model has adapters, which a checkpoint cannot hold: save those by save_adapter, or call "
                "merge_adapters and unload_adapters before you save the model"
            )
        tied = cast("Any", self).tied_weights
        tensors = {name: tensor for name, tensor in weights.items() if name not in tied or tied[name] not in weights}
        save_checkpoint(tensors, folder, max_shard_size=max_shard_size)
        dtype = next((t.dtype for t in tensors.values() if t.is_floating_point()), cast("Any", self).dtype)
        extra = {**self.config.extra, "architectures": [type(self).__name__]}
        self.config.replace(dtype=dtype, extra=extra).save_pretrained(folder)
        if self.generation_config:
            write_json(folder / "generation_config.json", self.generation_config)

    @classmethod
    def _from_config(cls, config: LlamaConfig, *, dtype: str | torch.dtype = "auto", **changes: Any) -> Self:
        """A model with first values; `changes` are run-time fields of the config, such as attn_implementation."""
        model = cast("Any", cls)(config.replace(**changes) if changes else config)
        name = config.dtype or "float32" if dtype == "auto" else dtype
        return model.to(getattr(torch, name) if isinstance(name, str) else name)


def check_plain(config: LlamaConfig) -> None:
    """Raise UnsupportedError for a checkpoint that another library quantized."""
    if method := config.extra.get("quantization_config"):
        kind = method.get("quant_method", "an unnamed method") if isinstance(method, dict) else method
        raise UnsupportedError(f"this checkpoint is quantized by {shortened(kind)}: give one of plain weights")


def check_fit(report: LoadReport, name: object, *, ignore_mismatched_sizes: bool) -> None:
    """Warn of what did not fit. Raises UsageError for shapes that differ, unless these may start at random."""
    if report.mismatched_keys and not ignore_mismatched_sizes:
        raise UsageError(
            f"{name} does not fit its config: {report}; ignore_mismatched_sizes=True starts these at random"
        )
    if str(report):
        warnings.warn(f"loading {name}: {report}", stacklevel=3)


def config_folder(config: Any) -> Path:
    """The folder that holds the config which `config=` names; raises UsageError for what is no name."""
    from llamita.files.hub import resolve

    if not isinstance(config, str | Path):
        raise UsageError(
            f"config is a {type(config).__module__}.{type(config).__name__}: pass a llamita.LlamaConfig, for example "
            "LlamaConfig.from_dict(config.to_dict()), or the name of a folder"
        )
    path = Path(config)
    return path.parent if path.name == "config.json" else resolve(str(config))


def opened(folder: Path, use_safetensors: bool | None) -> Tensors:
    """The weights in a folder, of the format that is asked for.

    Raises NotFoundError without safetensors that are asked for, UnsupportedError to read others where there are some.
    """
    from llamita.files.checkpoint import open_checkpoint

    has_safetensors = any(folder.glob("*.safetensors"))
    if use_safetensors and not has_safetensors:
        raise NotFoundError(f"{folder} has no .safetensors files: leave use_safetensors out to read what it has")
    if use_safetensors is False and has_safetensors:
        raise UnsupportedError(f"{folder} has .safetensors files, which are read first: leave use_safetensors out")
    return open_checkpoint(folder)


def chosen_dtype(dtype: str | torch.dtype, config: LlamaConfig, tensors: Any) -> str:
    """The name of the dtype to load in: the one asked for, or for "auto" the config's, or the files' own.

    Raises UsageError for an unknown one.
    """
    name = str(dtype).removeprefix("torch.")
    if name == "auto":
        own = (str(tensors.dtype(name)).removeprefix("torch.") for name in tensors.names)
        name = config.dtype or next((one for one in own if one in DTYPES), "float32")
    if name not in DTYPES:
        raise UsageError(f"dtype {name!r} is unknown: use auto or one of {', '.join(DTYPES)}")
    return name


def chosen_device(device: str | torch.device) -> torch.device:
    """The device asked for; "auto" is CUDA where there is one, else the CPU. Raises UsageError for one not here."""
    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise UsageError(f"device {str(device)!r} is not available here: use auto or cpu") from None
    return chosen


def read_generation_config(folder: Path | None, default: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a folder says of generation, or the default where it says nothing."""
    path = None if folder is None else folder / "generation_config.json"
    return GenerationConfig.from_pretrained(path.parent) if path is not None and path.exists() else default
