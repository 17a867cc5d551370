"""llamita: the LLaMA architecture, whole, as one Python package.

Public names are looked up on first use (PEP 562), so `import llamita` loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llamita.adapters.config import LoraConfig as LoraConfig
    from llamita.adapters.files import load_adapter as load_adapter
    from llamita.adapters.files import save_adapter as save_adapter
    from llamita.adapters.lora import add_lora as add_lora
    from llamita.adapters.lora import merge_adapters as merge_adapters
    from llamita.adapters.lora import merge_and_unload as merge_and_unload
    from llamita.adapters.lora import set_adapter as set_adapter
    from llamita.adapters.lora import unload_adapters as unload_adapters
    from llamita.adapters.lora import unmerge_adapters as unmerge_adapters
    from llamita.cache import DynamicCache as DynamicCache
    from llamita.cache import OffloadedCache as OffloadedCache
    from llamita.cache import QuantizedCache as QuantizedCache
    from llamita.cache import SinkCache as SinkCache
    from llamita.cache import SlidingWindowCache as SlidingWindowCache
    from llamita.cache import StaticCache as StaticCache
    from llamita.checkpoint.auto import AutoConfig as AutoConfig
    from llamita.checkpoint.auto import AutoModelForCausalLM as AutoModelForCausalLM
    from llamita.checkpoint.auto import AutoTokenizer as AutoTokenizer
    from llamita.config import LlamaConfig as LlamaConfig
    from llamita.config import RopeConfig as RopeConfig
    from llamita.errors import LlamitaError as LlamitaError
    from llamita.llm import LLM as LLM
    from llamita.loader import load as load
    from llamita.model.heads import LlamaForEmbedding as LlamaForEmbedding
    from llamita.model.heads import LlamaForQuestionAnswering as LlamaForQuestionAnswering
    from llamita.model.heads import LlamaForReward as LlamaForReward
    from llamita.model.heads import LlamaForSequenceClassification as LlamaForSequenceClassification
    from llamita.model.heads import LlamaForTokenClassification as LlamaForTokenClassification
    from llamita.model.layers import LlamaAttention as LlamaAttention
    from llamita.model.layers import LlamaDecoderLayer as LlamaDecoderLayer
    from llamita.model.layers import LlamaMLP as LlamaMLP
    from llamita.model.layers import LlamaRMSNorm as LlamaRMSNorm
    from llamita.model.llama import LlamaForCausalLM as LlamaForCausalLM
    from llamita.model.llama import LlamaModel as LlamaModel
    from llamita.model.pretrained import LlamaPreTrainedModel as LlamaPreTrainedModel
    from llamita.model.pretrained import PreTrainedModel as PreTrainedModel
    from llamita.model.rope import LlamaRotaryEmbedding as LlamaRotaryEmbedding
    from llamita.presets import PRESETS as PRESETS

__version__ = "0.1.0"

_HOME = {
    "LoraConfig": "llamita.adapters.config",
    "load_adapter": "llamita.adapters.files",
    "save_adapter": "llamita.adapters.files",
    "add_lora": "llamita.adapters.lora",
    "merge_adapters": "llamita.adapters.lora",
    "merge_and_unload": "llamita.adapters.lora",
    "set_adapter": "llamita.adapters.lora",
    "unload_adapters": "llamita.adapters.lora",
    "unmerge_adapters": "llamita.adapters.lora",
    "DynamicCache": "llamita.cache",
    "OffloadedCache": "llamita.cache",
    "QuantizedCache": "llamita.cache",
    "SinkCache": "llamita.cache",
    "SlidingWindowCache": "llamita.cache",
    "StaticCache": "llamita.cache",
    "AutoConfig": "llamita.checkpoint.auto",
    "AutoModelForCausalLM": "llamita.checkpoint.auto",
    "AutoTokenizer": "llamita.checkpoint.auto",
    "LlamaConfig": "llamita.config",
    "RopeConfig": "llamita.config",
    "LlamitaError": "llamita.errors",
    "LLM": "llamita.llm",
    "load": "llamita.loader",
    "LlamaForEmbedding": "llamita.model.heads",
    "LlamaForQuestionAnswering": "llamita.model.heads",
    "LlamaForReward": "llamita.model.heads",
    "LlamaForSequenceClassification": "llamita.model.heads",
    "LlamaForTokenClassification": "llamita.model.heads",
    "LlamaAttention": "llamita.model.layers",
    "LlamaDecoderLayer": "llamita.model.layers",
    "LlamaMLP": "llamita.model.layers",
    "LlamaRMSNorm": "llamita.model.layers",
    "LlamaForCausalLM": "llamita.model.llama",
    "LlamaModel": "llamita.model.llama",
    "LlamaPreTrainedModel": "llamita.model.pretrained",
    "PreTrainedModel": "llamita.model.pretrained",
    "LlamaRotaryEmbedding": "llamita.model.rope",
    "PRESETS": "llamita.presets",
}

__all__ = [  # pyright: ignore[reportUnsupportedDunderAll]
    "__version__",
    *_HOME,
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    if _is_imported():  # `from llamita import name` would lose the words of an AttributeError
        raise ImportError(f"cannot import name {name!r} from 'llamita'{_advice(name)}", name=name)
    raise AttributeError(f"module 'llamita' has no attribute {name!r}{_advice(name)}")


def _is_imported() -> bool:
    """Whether the caller of this module's `__getattr__` is an import statement."""
    import dis
    import sys

    caller = sys._getframe(2)
    return caller.f_code.co_code[caller.f_lasti] == dis.opmap["IMPORT_FROM"]


def _advice(name: str) -> str:
    from llamita.checks import nearest
    from llamita.habits import NAMES

    if name in NAMES:
        return f": use {NAMES[name]}"
    return "" if name.startswith("_") else nearest(name, _HOME, cutoff=0.75)


def __dir__() -> list[str]:
    return sorted(__all__)
