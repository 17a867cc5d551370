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


# Names that people know from other libraries, and what to use here.
_INSTEAD = {
    "LlamaTokenizer": "AutoTokenizer.from_pretrained(name)",
    "LlamaTokenizerFast": "AutoTokenizer.from_pretrained(name)",
    "PreTrainedTokenizerFast": "AutoTokenizer.from_pretrained(name)",
    "AutoModel": "LlamaModel",
    "AutoModelForSequenceClassification": "LlamaForSequenceClassification",
    "AutoModelForTokenClassification": "LlamaForTokenClassification",
    "AutoModelForQuestionAnswering": "LlamaForQuestionAnswering",
    "MistralForCausalLM": "LlamaForCausalLM, which reads Mistral's files",
    "MistralConfig": 'LlamaConfig with model_type="mistral"',
    "GenerationConfig": "a dictionary: model.generate(ids, generation_config={...})",
    "SamplingParams": "the options of llamita.load(name).generate",
    "BitsAndBytesConfig": 'llamita.load(name, quantize="q8_0")',
    "TextStreamer": "llamita.load(name).stream(text), or transformers' own with model.generate",
    "TextIteratorStreamer": "llamita.load(name).stream(text), or transformers' own with model.generate",
    "StoppingCriteria": "a function (ids, scores) -> bool in stopping_criteria=[...], or stop_strings",
    "LogitsProcessor": "a function (ids, scores) -> scores in logits_processor=[...]",
    "pipeline": "transformers.pipeline with a model of llamita's, or llamita.load(name).generate(text)",
    "Trainer": "transformers.Trainer with llamita.bridge.trainable.trainable(model)",
    "TrainingArguments": "transformers.TrainingArguments",
    "get_peft_model": "llamita.add_lora(model, llamita.LoraConfig(r=8)), or peft.get_peft_model",
    "PeftModel": "llamita.load_adapter(model, folder), or peft.PeftModel",
    "Llama": "llamita.load(path)",
    "set_seed": "torch.manual_seed, or seed= of generate",
    "generate": "llamita.load(name).generate(text)",
    "chat": "llamita.load(name).chat(messages)",
    "from_pretrained": "llamita.load(name), or LlamaForCausalLM.from_pretrained(name)",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'llamita' has no attribute {name!r}{_advice(name)}")


def _advice(name: str) -> str:
    from difflib import get_close_matches

    if name in _INSTEAD:
        return f": use {_INSTEAD[name]}"
    near = [] if name.startswith("_") else get_close_matches(name, _HOME, n=1, cutoff=0.75)
    return f": did you mean {near[0]!r}?" if near else ""


def __dir__() -> list[str]:
    return sorted(__all__)
