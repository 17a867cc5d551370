"""Whatever becomes of a fused model, its next pass is that of the model as it then is: nothing is stale or bypassed."""

import warnings
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import cache, partial
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from llamita.cache.growing import GrowingCache
from llamita.errors import UnsupportedError
from llamita.model.layers import LlamaDecoderLayer
from llamita.model.llama import LlamaForCausalLM
from llamita.model.rope import LlamaRotaryEmbedding
from llamita.plans.compile import compile_model
from llamita.plans.cpu import fuse, is_fused, unfuse, unsupported_reason
from llamita.plans.cpu.watch import Watch
from llamita.quant.surgery import quantize
from tests.unit.plans.cpu.models import plain, prompt

SIZES: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_hidden_layers": 2, "mlp_bias": True,
    "attention_bias": True,
}  # fmt: skip
CLOSE = {"plain": 1e-4, "quantized": 0.03}  # of the largest logit; x in bytes is rounded before or after another sum
IDS = torch.tensor([[5, 9, 31]])


@cache
def original(kind: str) -> LlamaForCausalLM:
    """A small model that all tests copy."""
    torch.manual_seed(3)
    model = plain(**SIZES)
    if kind == "quantized":
        quantize(model, "q8_0")
    return model


def running(kind: str) -> LlamaForCausalLM:
    """A copy of it, fused, that has made a pass."""
    model = fuse(deepcopy(original(kind)))
    logits(model)
    return model


@torch.no_grad()
def logits(model: LlamaForCausalLM) -> Tensor:
    """Those of the model as it is called."""
    return model(IDS, use_cache=True).logits.float()


@torch.no_grad()
def plainly(model: LlamaForCausalLM) -> Tensor:
    """Those of torch, module by module."""
    return type(model).forward(model, IDS, use_cache=True).logits.float()


def changed(output: Any) -> Any:
    """What a change that is to be seen makes of a module's output."""
    if isinstance(output, Tensor):
        return output * 1.5 + 0.25
    output.last_hidden_state = changed(output.last_hidden_state)
    return output


def louder(forward: Callable[..., Any], is_rotary: bool) -> Callable[..., Any]:
    """A forward that gives something else."""
    if is_rotary:
        return lambda *arguments: forward(*arguments[:-2], arguments[-2] * 3, arguments[-1])
    return lambda *arguments, **named: changed(forward(*arguments, **named))


class Wrapped(nn.Module):
    """A module around another."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """What the inner one gives, changed."""
        return louder(self.inner, isinstance(self.inner, LlamaRotaryEmbedding))(*arguments, **named)


class Double(nn.Module):
    """A parametrization."""

    def forward(self, weight: Tensor) -> Tensor:
        """Twice the weight."""
        return 2 * weight


def patch_instance(model: nn.Module, name: str, module: nn.Module) -> None:
    module.forward = louder(module.forward, isinstance(module, LlamaRotaryEmbedding))


def change_class(model: nn.Module, name: str, module: nn.Module) -> None:
    kind = type(module)
    forward = louder(kind.forward, isinstance(module, LlamaRotaryEmbedding))
    module.__class__ = type("Odd", (kind,), {"forward": lambda *arguments, **named: forward(*arguments, **named)})


def wrap(model: nn.Module, name: str, module: nn.Module) -> None:
    put(model, name, Wrapped(module))


def replace(model: nn.Module, name: str, module: nn.Module) -> None:
    twin = deepcopy(module)
    with torch.no_grad():
        for tensor in (*twin.parameters(), *twin.buffers()):
            tensor.mul_(1.5)
    put(model, name, twin)


def hook(model: nn.Module, name: str, module: nn.Module) -> None:
    if isinstance(module, LlamaRotaryEmbedding):
        module.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 3, inputs[1]))
    else:
        module.register_forward_hook(lambda module, inputs, output: changed(output))


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, module)


MODULES: dict[str, Callable[[nn.Module, str, nn.Module], None]] = {
    "a patched instance": patch_instance,
    "another class": change_class,
    "a module around it": wrap,
    "another module": replace,
    "a hook": hook,
}


def assert_follows(model: LlamaForCausalLM, before: Tensor, kind: str, what: str, *, is_plain: bool = False) -> None:
    """The model's pass is that of its modules, which is not what it was; to the bit where it is torch's."""
    wanted = plainly(model)
    for _ in range(2):
        got = logits(model)
        bound = 0.0 if is_plain else CLOSE[kind] * float(wanted.abs().max())
        assert float((got - wanted).abs().max()) <= bound, what
    assert wanted.shape != before.shape or float((wanted - before).abs().max()) > 1e-3, f"{what} changes nothing"


def modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """All modules with a forward of their own."""
    return ((n, m) for n, m in model.named_modules() if n and not isinstance(m, nn.ModuleList))


@pytest.mark.parametrize("kind", CLOSE)
@pytest.mark.parametrize("change", MODULES)
def test_every_module_may_become_another(change: str, kind: str) -> None:
    before = plainly(original(kind))
    for name, module in modules(original(kind)):
        if change == "another module" and not any(x.numel() for x in (*module.parameters(), *module.buffers())):
            continue  # all that it holds is a matrix, which is no tensor of its own
        model = running(kind)
        MODULES[change](model, name, model.get_submodule(name))
        is_plain = change != "another module"
        assert_follows(model, before, kind, f"{change}: {name}", is_plain=is_plain)


@pytest.mark.parametrize("kind", CLOSE)
def test_every_class_may_be_patched(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, before = running(kind), plainly(original(kind))
    classes = {type(module) for _, module in modules(model)}
    assert len(classes) == 8
    for one in classes:
        with monkeypatch.context() as patch:
            patch.setattr(one, "forward", louder(one.forward, one is LlamaRotaryEmbedding))
            assert_follows(model, before, kind, one.__name__, is_plain=True)
            fresh = deepcopy(original(kind))
            # nor is one taken for ours that was patched before
            assert "forward of" in (unsupported_reason(fresh) or "")
        assert float((logits(model) - before).abs().max()) <= CLOSE[kind] * float(before.abs().max())


STEPS = [("model.layers.1.self_attn", "heads"), ("model.layers.1.self_attn", "join"), ("model.layers.1", "finish")]


@pytest.mark.parametrize("is_of_class", [False, True], ids=["an instance", "a class"])
def test_what_a_forward_is_made_of_may_be_patched(is_of_class: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, before = running("plain"), plainly(original("plain"))
    first = logits(model)
    for name, step in STEPS:
        module = model.get_submodule(name)
        owner = type(module) if is_of_class else module
        own = getattr(owner, step)

        def patched(*arguments: Any, own: Callable[..., Any] = own) -> Any:
            output = own(*arguments)
            return tuple(map(changed, output)) if isinstance(output, tuple) else changed(output)

        with monkeypatch.context() as patch:
            patch.setattr(owner, step, patched)
            assert_follows(model, before, "plain", f"{name}.{step}", is_plain=True)
        vars(module).pop(step, None)  # where monkeypatch has put it back
        assert torch.equal(logits(model), first), step


def anew(module: nn.Module, leaf: str, value: Tensor) -> None:
    setattr(module, leaf, nn.Parameter(value))


def by_data(module: nn.Module, leaf: str, value: Tensor) -> None:
    getattr(module, leaf).data = value


def in_place(module: nn.Module, leaf: str, value: Tensor) -> None:
    with torch.no_grad():
        getattr(module, leaf).copy_(value)


def in_place_unseen(module: nn.Module, leaf: str, value: Tensor) -> None:
    getattr(module, leaf).data.copy_(value)  # no version counts this


def strided(module: nn.Module, leaf: str, value: Tensor) -> None:
    getattr(module, leaf).data = value[..., None].repeat_interleave(2, -1)[..., 0]


def transposed(module: nn.Module, leaf: str, value: Tensor) -> None:
    weight = getattr(module, leaf)
    weight.data = weight.data.mT if weight.ndim == 2 and weight.shape[0] == weight.shape[1] else value


def by_state_dict(module: nn.Module, leaf: str, value: Tensor) -> None:
    module.load_state_dict({leaf: value}, strict=False)


DTYPES = [torch.float32, torch.bfloat16]
PARAMETERS: dict[str, Callable[[nn.Module, str, Tensor], None]] = {
    "a new parameter": anew,
    "new data": by_data,
    "in place": in_place,
    "in place, unseen": in_place_unseen,
    "strided data": strided,
    "transposed data": transposed,
    "a state dict": by_state_dict,
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("change", PARAMETERS)
def test_every_parameter_may_change(change: str, dtype: torch.dtype) -> None:
    """Each changes in each way, every other one in this dtype: the next change takes the others in it."""
    torch.manual_seed(5)
    source = deepcopy(original("plain")).to(dtype)
    before, first = plainly(source), ([*PARAMETERS].index(change) + DTYPES.index(dtype)) % 2
    for name, parameter in [*source.named_parameters()][first::2]:
        model = fuse(deepcopy(source))
        logits(model)
        owner, _, leaf = name.rpartition(".")
        PARAMETERS[change](model.get_submodule(owner), leaf, parameter.detach().roll(1, 0) * 1.5 + 0.125)
        fresh = unfuse(deepcopy(model))
        if unsupported_reason(model) is None:
            assert torch.equal(logits(model), logits(fuse(fresh))), name
        else:
            assert torch.equal(logits(model), plainly(model)), name
        if not name.endswith("k_proj.bias"):  # hardly seen: nearly the same for all keys
            assert float((logits(model) - before).abs().max()) > 1e-3, name


def parametrized(model: LlamaForCausalLM) -> None:
    parametrize.register_parametrization(model.model.layers[1].mlp.up_proj, "weight", Double())  # pyright: ignore


def normed(model: LlamaForCausalLM) -> None:
    layer = model.model.layers[1].self_attn.v_proj  # pyright: ignore
    torch.nn.utils.parametrizations.weight_norm(layer)
    layer.parametrizations.weight.original0.data.mul_(2)


def normed_as_of_old(model: LlamaForCausalLM) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.nn.utils.weight_norm(model.model.layers[0].mlp.down_proj)  # pyright: ignore
    model.model.layers[0].mlp.down_proj.weight_g.data.mul_(2)  # pyright: ignore


def fewer_layers(model: LlamaForCausalLM) -> None:
    model.model.layers = model.model.layers[:1]


def more_layers(model: LlamaForCausalLM) -> None:
    model.model.layers.append(LlamaDecoderLayer(model.config, 2).eval())


def swapped_layers(model: LlamaForCausalLM) -> None:
    first, second = model.model.layers
    first.self_attn.layer_idx, second.self_attn.layer_idx = 1, 0  # pyright: ignore
    model.model.layers[0], model.model.layers[1] = second, first


def set_in(where: str, value: object) -> Callable[[LlamaForCausalLM], None]:
    owner, _, leaf = where.rpartition(".")
    return lambda model: setattr(model.get_submodule(owner), leaf, value)


def smaller_norm(model: LlamaForCausalLM) -> None:
    model.model.embed_tokens.max_norm = 0.1


def smaller_head(model: LlamaForCausalLM) -> None:
    model.lm_head = nn.Linear(64, 50)


def other_frequencies(model: LlamaForCausalLM) -> None:
    model.model.rotary_emb.inv_freq.mul_(3)


def other_config(model: LlamaForCausalLM) -> None:
    config = model.config.replace(sliding_window=2)
    model.config = model.model.config = config


def new_head(model: LlamaForCausalLM) -> None:
    torch.manual_seed(8)
    model.resize_token_embeddings(101)


MODELS: dict[str, Callable[[LlamaForCausalLM], Any]] = {
    "a parametrization": parametrized,
    "weight norm": normed,
    "weight norm as of old": normed_as_of_old,
    "fewer layers": fewer_layers,
    "more layers": more_layers,
    "swapped layers": swapped_layers,
    "no bias": set_in("model.layers.1.mlp.down_proj.bias", None),
    "a bias": set_in("lm_head.bias", nn.Parameter(torch.arange(97.0))),
    "epsilon": set_in("model.layers.1.input_layernorm.variance_epsilon", 3.0),
    "factor": set_in("model.rotary_emb.attention_factor", 2.0),
    "frequencies": other_frequencies,
    "other frequencies": set_in("model.rotary_emb.inv_freq", torch.arange(8.0)),
    "frequencies in fp64": set_in("model.rotary_emb.inv_freq", torch.arange(8.0, dtype=torch.float64)),
    "an activation": set_in("model.layers.1.mlp.act_fn", F.relu),
    "a wider head": set_in("model.layers.1.self_attn.head_dim", 32),
    "norms of embeddings": smaller_norm,
    "a smaller head": smaller_head,
    "a window": other_config,
    "eager attention": lambda model: model.set_attn_implementation("eager"),
    "a larger vocabulary": new_head,
    "half": lambda model: model.half(),
    "bfloat16": lambda model: model.to(torch.bfloat16),
    "tied": lambda model: setattr(model.lm_head, "weight", model.model.embed_tokens.weight),
    "another state dict": lambda model: model.load_state_dict(plain(**SIZES).state_dict()),
    "assigned": lambda model: model.load_state_dict(plain(**SIZES).state_dict(), assign=True),
    "quantized": lambda model: quantize(model, "q8_0"),
}
SAME = {"eager attention", "bfloat16", "half", "quantized", "a wider head"}  # as before, but for rounding, or refused


@pytest.mark.parametrize("change", MODELS)
def test_every_other_change(change: str) -> None:
    model, before = running("plain"), plainly(original("plain"))
    MODELS[change](model)
    if change == "a wider head":
        with pytest.raises(RuntimeError):
            logits(model)
        return
    wanted = plainly(model)
    close = 0.05 if change in SAME else 1e-4
    for _ in range(2):
        torch.testing.assert_close(logits(model), wanted, rtol=0, atol=close * float(wanted.abs().max()))
    assert change in SAME or wanted.shape != before.shape or float((wanted - before).abs().max()) > 1e-3


class Followed(nn.Parameter):
    """A parameter that sees what is done with it."""

    seen: ClassVar[list[str]] = []

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.seen.append(function.__name__)
        return super().__torch_function__(function, types, args, kwargs or {})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_memory_may_be_read_as_another_dtype(dtype: torch.dtype) -> None:
    model = fuse(deepcopy(original("plain")).to(dtype))
    before, other = logits(model), {torch.float16: torch.bfloat16, torch.bfloat16: torch.float16}[dtype]
    for parameter in model.parameters():
        parameter.data.mul_(0.5)
        parameter.data = parameter.data.view(other)  # same address, same size
    assert model.dtype == other
    assert torch.equal(logits(model), logits(fuse(unfuse(deepcopy(model)))))
    assert not torch.equal(logits(model), before)


def test_memory_may_be_read_as_another_shape_or_class() -> None:
    model = running("plain")
    up = model.model.layers[0].mlp.up_proj
    weight = up.weight.data  # pyright: ignore
    up.weight.data = weight.view(64, 96)  # pyright: ignore
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        logits(model)
    up.weight.data = weight  # pyright: ignore
    before = logits(model)
    up.weight.__class__ = Followed  # pyright: ignore
    Followed.seen.clear()
    assert torch.equal(logits(model), plainly(model))
    assert Followed.seen.count("linear") == 2
    up.weight.__class__ = nn.Parameter  # pyright: ignore
    assert torch.equal(logits(model), before)


def test_a_quantized_layer_may_become_a_plain_one_and_another_again() -> None:
    model = running("quantized")
    layer = model.model.layers[1].mlp
    quantized, before = layer.up_proj, logits(model)
    layer.up_proj = nn.Linear(64, 96)  # pyright: ignore
    assert_follows(model, before, "quantized", "plain")
    layer.up_proj = quantized  # pyright: ignore
    assert torch.equal(logits(model), before)
    quantized.matrix = layer.gate_proj.matrix  # pyright: ignore
    assert_follows(model, before, "quantized", "another matrix")
    quantized.matrix.packed.stream = torch.zeros_like(quantized.matrix.packed.stream)  # pyright: ignore
    assert_follows(model, before, "quantized", "another stream")


@pytest.mark.parametrize("kind", CLOSE)
@torch.no_grad()
def test_a_functional_call_is_that_of_its_tensors(kind: str) -> None:
    """These are no parameters, and those of the model are back after it."""
    model, before = running(kind), logits(running(kind))
    louder_ones = {name: 1.5 * x for name, x in model.named_parameters() if x.numel()}
    other = deepcopy(model)
    for name, x in other.named_parameters():
        x.copy_(louder_ones.get(name, x))
    got = torch.func.functional_call(model, louder_ones, (IDS,), {"use_cache": True}).logits
    assert torch.equal(got, logits(other)) and not torch.equal(got, before)
    assert torch.equal(logits(model), before)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@torch.no_grad()
def test_transforms_of_functions_are_left_to_torch() -> None:
    models = [running("plain"), running("plain")]
    for parameter in models[1].parameters():
        parameter.mul_(1.1)
    stacked, buffers = torch.func.stack_module_state([*models])

    def called(parameters: Any, buffers: Any) -> Tensor:
        return torch.func.functional_call(models[0], (parameters, buffers), (IDS,), {"use_cache": True}).logits

    for got, model in zip(torch.func.vmap(called)(stacked, buffers), models, strict=True):
        torch.testing.assert_close(got, plainly(model))
    got = torch.func.vmap(lambda ids: models[0](ids[None], use_cache=True).logits)(torch.cat((IDS, IDS + 1)))
    torch.testing.assert_close(got[0], plainly(models[0]))


def test_a_compiled_model_runs_the_same_programs() -> None:
    """torch's tracer, which would trace how programs are made, leaves them out."""
    model, before = running("plain"), logits(running("plain"))
    wanted = model.generate(IDS, max_new_tokens=4)
    torch.compiler.reset()
    model.compile(backend="eager")
    assert torch.equal(logits(model), before)
    assert torch.equal(model.generate(IDS, max_new_tokens=4), wanted)
    torch.compiler.reset()


def test_hooks_on_all_modules_are_called() -> None:
    model, seen = running("plain"), []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module))
    try:
        logits(model)
    finally:
        handle.remove()
    assert {id(module) for module in seen} == {id(model), *(id(module) for _, module in modules(model))}


def test_a_config_that_asks_for_more_gets_it() -> None:
    model = running("plain")
    model.config.extra["output_hidden_states"] = True
    with torch.no_grad():
        assert len(model(IDS).hidden_states) == 3
    del model.config.extra["output_hidden_states"]


def test_a_model_that_has_come_back_runs_on_kernels_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model, before = running("plain"), logits(running("plain"))
    forward = model.model.layers[0].forward
    for _ in range(2):
        model.model.layers[0].forward = louder(forward, is_rotary=False)
        assert not torch.equal(logits(model), before)
        del model.model.layers[0].forward
        assert torch.equal(logits(model), before)


# Other plans


def test_no_plan_takes_another_away() -> None:
    model = deepcopy(original("plain"))
    compile_model(model, "full", backend="eager")
    plan = vars(model)["forward"]
    assert not is_fused(model)
    with pytest.raises(UnsupportedError, match="another plan's already"):
        fuse(model)
    assert vars(unfuse(model))["forward"] is plan
    compile_model(model, "regional", backend="eager")
    with pytest.raises(UnsupportedError, match=r"the forward of model\.layers\.0 is not its class's own"):
        fuse(model)
    with pytest.raises(UnsupportedError, match="another plan's already"):
        model.gradient_checkpointing_enable()
    compile_model(model, "off")
    assert is_fused(fuse(model))


# Inputs


@pytest.mark.parametrize("tokens", [3, 20])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
@torch.no_grad()
def test_ids_of_every_kind(dtype: torch.dtype, tokens: int) -> None:
    model, ids = fuse(deepcopy(original("plain"))), prompt(2, tokens)
    wanted = model(ids, use_cache=True).logits
    kinds = {
        "dtype": ids.to(dtype),
        "strided": ids.to(dtype)[..., None].expand(2, tokens, 3)[..., 1],
        "transposed": ids.to(dtype).T.contiguous().T,
    }
    with torch.inference_mode():
        kinds["inference"] = ids.to(dtype) + 0
    for name, one in kinds.items():
        assert torch.equal(model(one, use_cache=True).logits, wanted), name


def outcome(call: Callable[..., Any], ids: Tensor, mask: Tensor | None) -> object:
    """The error, or the kind of logits."""
    try:
        logits = call(ids, attention_mask=mask, use_cache=True).logits
    except (RuntimeError, IndexError, ValueError, NotImplementedError) as error:
        return type(error), str(error)
    return logits.shape, logits.device


@pytest.mark.parametrize("kind", ["float", "bool", "elsewhere", "too few axes", "mask of other rows"])
@torch.no_grad()
def test_what_is_no_id_fares_as_in_torch(kind: str) -> None:
    model, ids = fuse(deepcopy(original("plain"))), prompt(2, 3)
    wrong = {
        "float": ids.float(), "bool": ids.bool(), "elsewhere": ids.to("meta"),
        "too few axes": ids[0],
    }  # fmt: skip
    arguments = wrong.get(kind, ids), torch.ones(3, 3) if kind == "mask of other rows" else None
    assert outcome(model, *arguments) == outcome(partial(type(model).forward, model), *arguments)


# While a text is written


class Negating:
    """Negates a model's head when it is called for the third time, by whoever calls it."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        self.model, self.calls = model, 0

    def __call__(self, value: Any = None) -> Any:
        self.calls += 1
        if self.calls == 3:
            self.model.lm_head.weight = nn.Parameter(-self.model.lm_head.weight)
        return value

    def put(self, value: Tensor) -> None:
        """As a streamer, which gets the prompt first."""
        if self.calls or value.ndim == 1:
            self()

    def end(self) -> None:
        """As a streamer."""


CALLERS: dict[str, Callable[[Negating], dict[str, Any]]] = {
    "a streamer": lambda change: {"streamer": change},
    "a criterion": lambda change: {"stopping_criteria": [lambda ids, scores: change(False)]},
    "a processor": lambda change: {"logits_processor": [lambda ids, scores: change(scores)]},
    "allowed tokens": lambda change: {"prefix_allowed_tokens_fn": lambda row, ids: change(list(range(97)))},
    "a hook": lambda change: change.model.register_forward_hook(lambda module, inputs, output: change(output)) and {},
}


@torch.no_grad()
def written(model: LlamaForCausalLM, change: Callable[[], object]) -> list[int]:
    """Six tokens, pass by pass; `change` is called after each."""
    unread, cache, tokens = IDS, GrowingCache(), list[int]()
    for _ in range(6):
        unread = model(unread, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)
        tokens.append(int(unread))
        change()
    return tokens


@pytest.mark.parametrize("caller", CALLERS)
def test_what_runs_between_two_tokens_may_change_the_model(caller: str) -> None:
    model, twin = running("plain"), running("plain")
    wanted, unchanged = written(twin, Negating(twin)), written(running("plain"), lambda: None)
    found = model.generate(IDS, max_new_tokens=6, do_sample=False, **CALLERS[caller](Negating(model)))
    assert found[0, 3:].tolist() == wanted != unchanged


def test_a_text_that_nobody_watches_is_written_without_looking_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model, looks, has_changed = running("plain"), list[bool](), Watch.has_changed
    monkeypatch.setattr(Watch, "has_changed", lambda watch: (looks.append(has_changed(watch)), looks[-1])[1])
    for _ in range(2):
        looks.clear()
        found = model.generate(IDS, max_new_tokens=6, do_sample=False)
        assert looks == [False, False]  # of the pass that reads the prompt, and of the first after it
        assert found[0, 3:].tolist() == written(model, lambda: None)
        model.lm_head.weight = nn.Parameter(-model.lm_head.weight)
        logits(model)  # which sees the change
