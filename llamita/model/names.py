"""The names that transformers' users type: what stands for what, what does nothing here, and what is refused, why."""

from collections.abc import Mapping
from typing import Any

import torch

from llamita.checks import nearest, quoted
from llamita.config.llama import CHANGEABLE, NEUTRAL
from llamita.errors import UnsupportedError, UsageError

# Names of from_pretrained's own signature, to be meant by one that is misspelled.
OWN = (
    "config", "dtype", "torch_dtype", "device", "device_map", "device_mesh", "shard", "attn_implementation",
    "state_dict",
    "revision", "subfolder", "token", "cache_dir", "force_download", "local_files_only", "use_safetensors",
    "output_loading_info", "ignore_mismatched_sizes",
)  # fmt: skip
# Names of from_pretrained that ask for what llamita does anyway, or that only other libraries have a use for.
IDLE = (
    "low_cpu_mem_usage", "weights_only", "code_revision", "offload_folder", "offload_state_dict", "offload_buffers",
    "max_memory", "resume_download", "_fast_init", "use_fast",
)  # fmt: skip
# Names that are refused, unless their value asks for nothing.
REFUSED: Mapping[str, str] = {
    "trust_remote_code": "llamita runs no code of a checkpoint, its model is its own: leave it out",
    "quantization_config": 'llamita.load(name, quantize="q8_0") quantizes while it loads',
    "load_in_8bit": 'llamita.load(name, quantize="q8_0") loads in 8 bits',
    "load_in_4bit": 'llamita.load(name, quantize="q4_0") loads in 4 bits',
    "gguf_file": "llamita.load(path) reads GGUF files",
    "tp_plan": "device_mesh= shards a model over the tp dim of a mesh",
    "variant": "name a folder or a revision whose weights bear their usual names",
    "adapter_kwargs": "llamita.load_adapter(model, folder) gives a model an adapter",
    "use_kernels": "llamita.load(name) runs a model with kernels",
    "key_mapping": "rename the weights, and pass them as state_dict=",
    "from_tf": "save the checkpoint as safetensors first",
    "from_flax": "save the checkpoint as safetensors first",
    "use_auth_token": "it is token= now",
    "proxies": "set HTTPS_PROXY in the environment",
}  # fmt: skip
# Names of save_pretrained: what does nothing here, and what is refused unless it asks for nothing.
IDLE_TO_SAVE = ("token", "save_peft_format", "save_original_format", "use_auth_token", "save_function")
REFUSED_TO_SAVE: Mapping[str, str] = {
    "variant": "the weights are named as they are read: choose another folder",
    "repo_id": "llamita uploads nothing: save to a folder, then `hf upload organisation/name folder`",
}
OWN_TO_SAVE = ("is_main_process", "state_dict", "max_shard_size", "safe_serialization", "push_to_hub")
WHOLE = ("auto", "balanced", "balanced_low_0", "sequential")  # device maps that leave the choice


def check_names(changes: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config among the further names of a call; raises for what is refused, or no name at all."""
    fields = {*CHANGEABLE, *NEUTRAL, "label2id"} - {"extra"}
    for name, value in changes.items():
        refuse(name, value, REFUSED)
        if name not in fields and name not in REFUSED and name not in IDLE:
            known = {*fields, *OWN, *IDLE, *REFUSED}
            raise UsageError(
                f"from_pretrained knows no {name!r}, nor has the config such a field{nearest(name, known)}"
            )
    return {name: value for name, value in changes.items() if name in fields}


def check_save_names(given: Mapping[str, Any]) -> None:
    """Raise for further names of a save_pretrained: what is refused, or no name at all."""
    known = {*IDLE_TO_SAVE, *REFUSED_TO_SAVE, *OWN_TO_SAVE}
    for name, value in given.items():
        refuse(name, value, REFUSED_TO_SAVE)
        if name not in known:
            raise UsageError(f"save_pretrained knows no {name!r}{nearest(name, known)}")


def refuse(name: str, value: Any, reasons: Mapping[str, str]) -> None:
    """Raise UnsupportedError for a name with a reason against it, unless its value asks for nothing."""
    if name in reasons and value not in (None, False):
        raise UnsupportedError(f"{name} is not for llamita: {reasons[name]}")


def one_dtype(dtype: str | torch.dtype | None, torch_dtype: str | torch.dtype | None) -> str | torch.dtype:
    """The dtype asked for under its new or its old name; "auto" for neither. Raises UsageError where they differ."""
    given = {str(one).removeprefix("torch."): one for one in (dtype, torch_dtype) if one is not None}
    if len(given) > 1:
        raise UsageError(f"dtype is {dtype} and torch_dtype {torch_dtype}: they are one thing, give one of them")
    return next(iter(given.values()), "auto")


def one_device(device: str | torch.device | None, device_map: Any) -> str | torch.device:
    """The device asked for by name or by a map of one device; "auto" where there is neither.

    Raises UsageError where they differ, and UnsupportedError for a map of several devices.
    """
    if device_map is None:
        return "auto" if device is None else device
    if isinstance(device_map, Mapping):
        places = {str(place) for place in device_map.values()}
        if len(places) != 1:
            raise UnsupportedError(
                f"device_map names {len(places)} devices: llamita keeps a loaded model on one, give that, such as "
                'device_map="cpu"'
            )
        device_map = next(iter(device_map.values()))
    if not isinstance(device_map, str | int | torch.device):
        raise UsageError(f"device_map is {quoted(device_map)}: give the name of a device")
    chosen = "auto" if device_map in WHOLE else f"cuda:{device_map}" if isinstance(device_map, int) else device_map
    if device is not None and str(device) != str(chosen):
        raise UsageError(f"device is {device} and device_map {device_map}: they are one thing, give one of them")
    return chosen
