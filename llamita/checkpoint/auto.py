"""AutoModelForCausalLM and the like, for code that is written for transformers: each loads llamita's own class."""

from pathlib import Path
from typing import Any, NoReturn

from llamita.checkpoint.gguf_names import is_gguf
from llamita.checkpoint.load import find, with_tokens
from llamita.config import LlamaConfig
from llamita.errors import UsageError
from llamita.files.hub import resolve
from llamita.model.llama import LlamaForCausalLM
from llamita.model.names import IDLE, REFUSED, check_names, refuse
from llamita.tokenizer.protocol import Tokenizer


class AutoClass:
    """A class that has no instances: only its `from_pretrained` is used."""

    def __new__(cls, *_: Any, **__: Any) -> NoReturn:
        """Raise UsageError: there is nothing to make without a name."""
        raise UsageError(f"{cls.__name__} makes nothing by itself: call {cls.__name__}.from_pretrained(name)")


class AutoModelForCausalLM(AutoClass):
    """`LlamaForCausalLM` under transformers' general name for a language model."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> LlamaForCausalLM:
        """`LlamaForCausalLM.from_pretrained`, whose options these are."""
        return LlamaForCausalLM.from_pretrained(pretrained_model_name_or_path, **options)

    @classmethod
    def from_config(cls, config: LlamaConfig, **options: Any) -> LlamaForCausalLM:
        """A model with first values; options: dtype, attn_implementation."""
        dtype = options.pop("torch_dtype", None) or options.pop("dtype", None) or "auto"
        return LlamaForCausalLM._from_config(config, dtype=dtype, **check_names(options))


class AutoConfig(AutoClass):
    """`LlamaConfig` of a folder or of a name on the hub."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        subfolder: str = "",
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        **changes: Any,
    ) -> LlamaConfig:
        """The config of a checkpoint, with some fields changed."""
        folder = resolve(
            str(pretrained_model_name_or_path), revision=revision, offline=local_files_only, subfolder=subfolder,
            token=token, cache_dir=cache_dir,
        )  # fmt: skip
        return LlamaConfig.from_pretrained(folder, **check_names(changes))


class AutoTokenizer(AutoClass):
    """The tokenizer of a checkpoint: `encode`, `decode` and what else `llamita.tokenizer.protocol` says."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        subfolder: str = "",
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        **options: Any,
    ) -> Tokenizer:
        """The tokenizer of a folder, of a name on the hub, or of a GGUF file; "cria" is the embedded model's."""
        for name, value in options.items():
            refuse(name, value, REFUSED)
            if name not in IDLE and name not in REFUSED:
                raise UsageError(f"AutoTokenizer.from_pretrained knows no {name!r}: leave it out")
        if any((subfolder, token, cache_dir)):
            path = resolve(
                str(pretrained_model_name_or_path), revision=revision, offline=local_files_only, subfolder=subfolder,
                token=token, cache_dir=cache_dir,
            )  # fmt: skip
        else:
            path = find(pretrained_model_name_or_path, revision=revision, offline=local_files_only)
        if is_gguf(path):
            from llamita.checkpoint.gguf import open_model

            return with_tokens(open_model(path)[1], path)
        from llamita.tokenizer.load import load_tokenizer

        return load_tokenizer(path)
