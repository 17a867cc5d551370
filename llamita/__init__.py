"""llamita: the LLaMA architecture, whole, as one Python package.

Public names are looked up on first use (PEP 562), so `import llamita` loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llamita.cache import DynamicCache as DynamicCache
    from llamita.cache import OffloadedCache as OffloadedCache
    from llamita.cache import QuantizedCache as QuantizedCache
    from llamita.cache import SinkCache as SinkCache
    from llamita.cache import SlidingWindowCache as SlidingWindowCache
    from llamita.cache import StaticCache as StaticCache
    from llamita.config import LlamaConfig as LlamaConfig
    from llamita.config import RopeConfig as RopeConfig
    from llamita.errors import LlamitaError as LlamitaError
    from llamita.llm import LLM as LLM
    from llamita.llm import load as load
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
    "DynamicCache": "llamita.cache",
    "OffloadedCache": "llamita.cache",
    "QuantizedCache": "llamita.cache",
    "SinkCache": "llamita.cache",
    "SlidingWindowCache": "llamita.cache",
    "StaticCache": "llamita.cache",
    "LlamaConfig": "llamita.config",
    "RopeConfig": "llamita.config",
    "LlamitaError": "llamita.errors",
    "LLM": "llamita.llm",
    "load": "llamita.llm",
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
    if name not in _HOME:
        raise AttributeError(f"module 'llamita' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
