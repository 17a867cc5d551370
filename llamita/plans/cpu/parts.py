"""Which models the kernels support: modules, their forwards, and sizes."""

from collections.abc import Iterator, Mapping
from inspect import isfunction

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llamita.attention import eager, sdpa
from llamita.config import LlamaConfig
from llamita.kernels.cpu.linear import PLAIN
from llamita.kernels.cpu.packed_layout import Packed
from llamita.kernels.cpu.runtime import program
from llamita.model.layers import LlamaAttention, LlamaDecoderLayer, LlamaMLP, LlamaRMSNorm
from llamita.model.llama import LlamaForCausalLM, LlamaModel
from llamita.model.parts import LEAVES, NORMS, unknown
from llamita.model.plan import is_replaced
from llamita.model.pretrained import PreTrainedModel
from llamita.model.rope import LlamaRotaryEmbedding
from llamita.plans.cpu.called import Called
from llamita.plans.cpu.weights import packed_of

PACKAGE = __name__.partition(".")[0]
PARTS: dict[type[nn.Module], dict[str, type[nn.Module]]] = {  # what a module has inside
    LlamaForCausalLM: {"model": LlamaModel, "lm_head": nn.Linear},
    LlamaModel: {
        "embed_tokens": nn.Embedding, "layers": nn.ModuleList, "norm": LlamaRMSNorm, "rotary_emb": LlamaRotaryEmbedding,
    },
    LlamaDecoderLayer: {
        "self_attn": LlamaAttention, "mlp": LlamaMLP, **dict.fromkeys((LEAVES[one] for one in NORMS), LlamaRMSNorm),
    },
    LlamaAttention: dict.fromkeys((LEAVES[one] for one in "qkvo"), nn.Linear),
    LlamaMLP: dict.fromkeys((LEAVES[one] for one in ("gate", "up", "down")), nn.Linear),
}  # fmt: skip
# What a module's forward is made of: functions of its class that the kernels stand in for as well.
STEPS: Mapping[type[nn.Module], tuple[str, ...]] = {
    kind: tuple(name for name, one in vars(kind).items() if isfunction(one) and not hasattr(nn.Module, name))
    for kind in (LlamaDecoderLayer, LlamaAttention, LlamaMLP, LlamaRMSNorm, LlamaRotaryEmbedding)
}


def unsupported_reason(model: LlamaForCausalLM) -> str | None:
    """The reason why the kernels cannot run a model, or None."""
    return _of_config(model) or next(_of_modules(model), None) or _of_functions() or program.unsupported_reason()


def _of_functions() -> str | None:
    name = CALLED.replaced()
    return None if name is None else f"the function {name} was replaced, and the kernels would bypass it"


def _of_config(model: LlamaForCausalLM) -> str | None:
    config = model.config
    if model.device.type != "cpu":
        return f"it is on {model.device}, and the kernels are the CPU's"
    if config.attn_implementation == "fixed":
        return "it is in torch's batch-invariant mode, whose arithmetic is another"
    if (reason := unknown(config)) is not None:
        return reason
    if config.head_dim % 16 or config.head_dim > 256:
        return f"its heads are {config.head_dim} wide, and the kernels know multiples of 16 up to 256"
    return None if model.dtype in PLAIN else f"its dtype is {model.dtype}"


def _of_modules(model: LlamaForCausalLM) -> Iterator[str]:
    """What the kernels do not know about the modules; whoever asks for the next knows all before it to be in order."""
    config, shapes = model.config, _shapes(model.config)
    for name, module, kind in _parts("", model, LlamaForCausalLM):
        yield from _of_class(name, module, kind)
        yield from _of_attributes(name, module, _facts(name, config))
        if isinstance(module, LlamaRotaryEmbedding):
            yield from _of_rotation(name, module, config.head_dim)
        if kind is nn.ModuleList and not len(module._modules):
            yield "it has no layers"
        if (shape := shapes.get(name.rpartition(".")[2])) is not None:
            yield from _of_shapes(name, module, kind, shape)


def _of_class(name: str, module: nn.Module, kind: type[nn.Module]) -> Iterator[str]:
    """What is wrong with a module's class or forward, where this class is expected."""
    is_packed = _packed(module, kind) is not None
    is_known = is_packed and type(module).__module__.startswith(f"{PACKAGE}.")
    if type(module) is not kind and not is_known and name:
        yield f"{name} is a {type(module).__name__} that the kernels do not know"
    is_patched = name and (is_replaced(module) or not vars(module).keys().isdisjoint(STEPS.get(kind, ())))
    if is_patched or not is_own(module, type(module) if is_packed else kind):
        yield f"the forward of {name or 'the model'} is not its class's own, and the kernels would bypass it"


def _of_attributes(name: str, module: nn.Module, facts: Mapping[str, object]) -> Iterator[str]:
    """What is wrong with a module's attributes, which must have these values, and with its tensors."""
    for fact, value in facts.items():
        if vars(module).get(fact) != value:
            yield f"{name}.{fact} is {vars(module).get(fact)}, and the kernels know {value}"
    for leaf, tensor in (*module._parameters.items(), *module._buffers.items()):
        if tensor is not None and tensor.numel() and not _is_readable(tensor):
            yield f"{name}.{leaf} is no plain tensor in this machine's memory, in fp32, fp16 or bf16"


def _of_rotation(name: str, module: LlamaRotaryEmbedding, width: int) -> Iterator[str]:
    """What is wrong with the frequencies of heads of this width."""
    if module.config.rope_parameters.depends_on_length:
        yield f"its rotary type {module.config.rope_parameters.rope_type} depends on the length"
    frequencies = module._buffers.get("inv_freq")
    if frequencies is None or (frequencies.dtype, frequencies.numel()) != (torch.float32, width // 2):
        yield f"{name}.inv_freq is not {width // 2} numbers in fp32"


def _of_shapes(name: str, module: nn.Module, kind: type[nn.Module], shape: tuple[int, ...]) -> Iterator[str]:
    """What is wrong with the shapes of a module's weight, which should be this one, and of its bias."""
    packed, weight = _packed(module, kind), module._parameters.get("weight")
    found = (packed.rows, packed.columns) if packed else weight is not None and tuple(weight.shape)
    if found != shape:
        yield f"the weight of {name} is not of the shape {shape} that its config says"
    bias = module._parameters.get("bias")
    if bias is not None and bias.shape != shape[:1]:
        yield f"the bias of {name} is of the shape {tuple(bias.shape)}"


def _packed(module: nn.Module, kind: type[nn.Module]) -> Packed | None:
    """The packed weight of a module in the place of a plain layer or embedding, if it has one."""
    return packed_of(module) if kind in (nn.Linear, nn.Embedding) else None


def _parts(name: str, module: nn.Module, kind: type[nn.Module]) -> Iterator[tuple[str, nn.Module, type[nn.Module]]]:
    """A module and all that its class has inside: the whole name, the module, the class that is expected."""
    yield name, module, kind
    inside = dict.fromkeys(module._modules, LlamaDecoderLayer) if kind is nn.ModuleList else PARTS.get(kind, {})
    for child, its_kind in inside.items():
        yield from _parts(f"{name}.{child}".lstrip("."), module._modules.get(child) or nn.Identity(), its_kind)


def is_own(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a module is called as every other, and its class has the very functions that its source has."""
    if type(module).__call__ is not nn.Module.__call__:
        return False
    return all(
        getattr(type(module), one) is getattr(kind, one) and _is_of_source(kind, one) for one in functions_of(kind)
    )


def functions_of(kind: type[nn.Module]) -> tuple[str, ...]:
    """The functions of a class that a pass depends on."""
    return ("forward", *STEPS.get(kind, ()))


# What torch's pass looks up while it runs, wherever that is.
CALLED = Called(
    {
        nn.Module: ("__call__", "_wrapped_call_impl", "_call_impl"),
        **{kind: functions_of(kind) for kind in (nn.Linear, nn.Embedding, *STEPS)},
        PreTrainedModel: ("finish",),
        LlamaForCausalLM: ("forward",),
        LlamaModel: ("forward", "_context", "_cache", "_wanted"),
        sdpa: ("attend",),
        eager: ("attend",),
        F: ("silu",),  # models have it from the start, but plans look it up
    }
)


def _is_of_source(kind: type[nn.Module], name: str) -> bool:
    """Whether the function of this name is the one that stands in the class's source."""
    code, other = getattr(getattr(kind, name), "__code__", None), kind.__init__.__code__
    is_inherited = name not in vars(kind)  # that of nn.Module, which raises
    return is_inherited or (
        code is not None
        and code.co_qualname == f"{kind.__qualname__}.{name}"
        and code.co_filename == (other.co_filename if "__init__" in vars(kind) else code.co_filename)
    )


def _is_readable(tensor: Tensor) -> bool:
    is_plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided and tensor.device.type == "cpu"
    return is_plain and tensor.dtype in PLAIN and tensor.is_contiguous() and tensor.data_ptr() != 0


def _facts(name: str, config: LlamaConfig) -> dict[str, object]:
    """The attributes that a module of this name must have, for the kernels have no others."""
    owner, _, leaf = name.rpartition(".")
    if leaf == "self_attn":
        return {"layer_idx": int(owner.rpartition(".")[2]), "head_dim": config.head_dim}
    facts: dict[str, dict[str, object]] = {
        "model": {"config": config},
        "mlp": {"act_fn": F.silu},
        "embed_tokens": {"max_norm": None},
    }
    return facts.get(leaf, {})


def _shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """The shapes of the weights, by the last word of their modules' names."""
    width, wide, words = config.hidden_size, config.intermediate_size, config.vocab_size
    queries, keys = (heads * config.head_dim for heads in (config.num_attention_heads, config.num_key_value_heads))
    shapes = {
        **dict.fromkeys(NORMS, (width,)), "q": (queries, width), "k": (keys, width), "v": (keys, width),
        "o": (width, queries), "gate": (wide, width), "up": (wide, width), "down": (width, wide),
    }  # fmt: skip
    outside = {"embed_tokens": (words, width), "norm": (width,), "lm_head": (words, width)}
    return {LEAVES[part]: shape for part, shape in shapes.items()} | outside
