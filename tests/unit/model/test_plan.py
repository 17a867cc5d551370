"""The slot for plans: every pair of plans in both orders, and that no other file touches a module's forward."""

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import permutations
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

import llamita
from llamita.cache.static import StaticCache
from llamita.errors import UnsupportedError, UsageError
from llamita.generation.speculative.verify import has_kernels
from llamita.model import plan
from llamita.model.llama import LlamaForCausalLM
from llamita.parallel.context import split_rows
from llamita.parallel.tensor import shard_for_writing
from llamita.plans import training
from llamita.plans.compile import compile_model
from llamita.plans.cpu import fuse, unfuse
from llamita.plans.cuda.graphs import PlainStep
from llamita.plans.cuda.layers import install
from llamita.plans.invariant import invariant, variant
from tests.unit.plans.cpu.models import plain, prompt


def graphed(model: LlamaForCausalLM) -> None:
    """A step as a graph records it, which holds the model but is no part of it."""
    PlainStep(model, StaticCache(model.config, batch=1, capacity=4, dtype=torch.float32))


def sharded(model: LlamaForCausalLM) -> None:
    """Shard a model over a mesh of this process alone."""
    shard_for_writing(model, init_device_mesh("cpu", (1,), mesh_dim_names=("tp",)))


def trained(model: LlamaForCausalLM) -> None:
    """Layers with written-out backward passes."""
    training.enable(model, list(model.model.layers), model.config)


def split(model: LlamaForCausalLM) -> None:
    """Share rows over a mesh of this process alone."""
    split_rows(model, init_device_mesh("cpu", (1,), mesh_dim_names=("cp",)))


@dataclass(frozen=True)
class Case:
    """How a plan is applied and taken back, its name in the slot, and how far from plain logits it may be."""

    apply: Callable[[LlamaForCausalLM], object]
    remove: Callable[[LlamaForCausalLM], object]
    names: tuple[str, ...]
    close: float = 0.0
    together: frozenset[str] = frozenset()  # cases that may come after it


CASES = {
    "kernels": Case(fuse, unfuse, ("kernels",), 1e-4),
    "regional": Case(
        partial(compile_model, plan="regional", backend="eager"), partial(compile_model, plan="off"), ("compile",),
        together=frozenset({"full"}),
    ),
    "full": Case(
        partial(compile_model, plan="full", backend="eager"), partial(compile_model, plan="off"), ("compile",),
        together=frozenset({"regional"}),
    ),
    "recompute": Case(
        LlamaForCausalLM.gradient_checkpointing_enable, LlamaForCausalLM.gradient_checkpointing_disable,
        ("recompute",), together=frozenset({"invariant", "graphs", "tensor", "context"}),
    ),
    "tensor": Case(
        sharded, lambda model: plan.remove(model, "tensor"), ("tensor",), together=frozenset({"recompute", "context"})
    ),
    "context": Case(
        split, lambda model: plan.remove(model, "context"), ("context",), together=frozenset({"recompute", "tensor"})
    ),
    "training": Case(
        trained, lambda model: plan.remove(model, "training"), ("training",),
        together=frozenset({"recompute", "graphs"}),
    ),
    "invariant": Case(invariant, variant, ("invariant",), 1e-5, frozenset({"recompute"})),
    "cuda": Case(install, lambda model: None, ("cuda",), 1e-4, frozenset({"graphs"})),
    "graphs": Case(graphed, lambda model: None, ()),
}  # fmt: skip


pytestmark = pytest.mark.usefixtures("process_group")  # of the plan that shards


@pytest.fixture(scope="module")
def original() -> LlamaForCausalLM:
    torch.manual_seed(3)
    return plain(num_hidden_layers=2).requires_grad_(False)


@torch.no_grad()
def logits(model: LlamaForCausalLM) -> Tensor:
    return model(torch.tensor([[5, 9, 31]]), use_cache=True).logits.float()


def state(model: LlamaForCausalLM) -> tuple[object, ...]:
    """All that a plan could leave behind."""
    kinds = [(name, type(module), sorted(vars(module))) for name, module in model.named_modules()]
    return kinds, [vars(module).get("act_fn") for module in model.modules()], model.config, model.model.config


def assert_close(model: LlamaForCausalLM, wanted: Tensor, *cases: Case) -> None:
    bound = max((case.close for case in cases), default=0.0) * float(wanted.abs().max())
    assert float((logits(model) - wanted).abs().max()) <= bound


@pytest.mark.parametrize(("first", "second"), [*permutations(CASES, 2)])
def test_plans_cross(first: str, second: str, original: LlamaForCausalLM) -> None:
    torch.compiler.reset()
    model, wanted, (one, other) = copy.deepcopy(original), logits(original), (CASES[first], CASES[second])
    before = state(model)
    one.apply(model)
    assert plan.active(model) == one.names
    assert has_kernels(model) == (first == "kernels")
    if second in one.together or first == "graphs":
        other.apply(model)
        assert_close(model, wanted, one, other)
        assert set(plan.active(model)) == {*one.names, *other.names}
    else:
        with pytest.raises(UnsupportedError) as refusal:
            other.apply(model)
        assert str(refusal.value).count("\n") == 0 and len(str(refusal.value)) < 260
        assert plan.active(model) == one.names
        with torch.compiler.set_stance("force_eager"):  # the slot is looked at: test_compile compiles
            assert_close(model, wanted, one)
    for case in (one, other):
        case.remove(model)
    if "cuda" in plan.active(model):
        with pytest.raises(UnsupportedError, match=r"^the plan cuda swapped the model's layers for good"):
            plan.remove(model, "cuda")
    else:
        assert plan.active(model) == ()
        assert state(model) == before
        assert_close(model, wanted)


@pytest.mark.parametrize("name", [name for name in CASES if name != "graphs"])
def test_a_plan_twice_is_once_and_a_copy_has_it(name: str, original: LlamaForCausalLM) -> None:
    torch.compiler.reset()
    model, case = copy.deepcopy(original), CASES[name]
    before = state(model)
    for _ in range(1 if name == "cuda" else 2):
        case.apply(model)
    twin = copy.deepcopy(model)
    assert plan.active(twin) == case.names
    case.remove(twin)
    assert plan.active(model) == case.names
    assert name == "cuda" or state(twin) == before


@pytest.mark.parametrize("name", [name for name in CASES if name != "graphs"])
@pytest.mark.parametrize("where", ["model.layers.1", "model.layers.0"])
def test_a_forward_that_is_no_plans_is_never_overwritten(name: str, where: str, original: LlamaForCausalLM) -> None:
    model = copy.deepcopy(original)
    own = model.get_submodule(where).forward = lambda *args: "another's"
    with pytest.raises(UnsupportedError, match=r"another plan's already|not its class's own"):
        CASES[name].apply(model)
    assert model.get_submodule(where).forward is own
    assert plan.active(model) == ()
    assert model.config.attn_implementation == "sdpa"


def test_every_refusal_is_of_plans_that_there_are() -> None:
    assert {name for pair in plan.PAIRS for name in pair} <= set(plan.PLANS)
    with pytest.raises(UsageError, match=r"^no plan is named 'fast': use one of kernels, compile"):
        plan.remove(nn.Linear(2, 2), "fast")


def test_what_decides_for_kernels_is_the_plan_and_no_other(original: LlamaForCausalLM) -> None:
    assert not has_kernels(original)
    assert has_kernels(fuse(copy.deepcopy(original)))
    assert logits(original).shape == (1, 3, 97) and prompt().shape == (1, 11)


def test_no_other_file_touches_forwards() -> None:
    folder = Path(llamita.__file__).parent
    touches = re.compile(r'\.forward = |\["forward"\]|setattr\([^)]*"forward"|delattr\([^)]*"forward"|del \S+\.forward')
    found = {str(path.relative_to(folder)) for path in folder.rglob("*.py") if touches.search(path.read_text("utf-8"))}
    assert found == {"model/plan.py"}
