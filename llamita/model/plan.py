"""Plans replace the forwards of a finished model's modules. No other file touches `module.forward`.

A model may have several plans where the table allows it. Each puts `StandIn`s into the forwards of modules, or swaps
modules for `PlanModule`s permanently. There is no other record: a copy of a model has the plans of the original.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Never

from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from llamita.errors import UnsupportedError, UsageError

if TYPE_CHECKING:
    from llamita.context.paged import Paged

# Each plan, and how to undo it.
PLANS: Mapping[str, str] = {
    "kernels": "llamita.plans.cpu.unfuse(model)",
    "compile": 'compile_model(model, "off")',
    "training": 'llamita.model.plan.remove(model, "training")',
    "recompute": "model.gradient_checkpointing_disable()",
    "offload": 'llamita.model.plan.remove(model, "offload")',
    "invariant": "llamita.plans.invariant.variant(model)",
    "cuda": "a new load of the model",
    "graphs": "a step without a graph",
    "tensor": 'llamita.model.plan.remove(model, "tensor")',
    "context": 'llamita.model.plan.remove(model, "context")',
}
# (the active plan, the requested plan): "" where they go together in this order, otherwise why they do not.
# Pairs outside the table do not go together either.
PAIRS: Mapping[tuple[str, str], str] = {
    ("training", "recompute"): "",  # recompute runs the written-out layer again
    ("training", "offload"): "",
    ("recompute", "offload"): "a layer that is recomputed saves nothing to offload: give up one of the two",
    ("offload", "recompute"): "a layer that is recomputed saves nothing to offload: give up one of the two",
    ("training", "graphs"): "",  # a step has no backward pass, and runs the plain layer
    ("recompute", "training"): "recompute must wrap the training plan: switch it off, apply training, then recompute",
    ("recompute", "invariant"): "",  # layers and products: no module has both
    ("invariant", "recompute"): "",
    ("tensor", "recompute"): "",  # parts of layers, and layers
    ("recompute", "tensor"): "",
    ("tensor", "context"): "",  # parts of layers, and the base model
    ("context", "tensor"): "",
    ("recompute", "context"): "",
    ("context", "recompute"): "",
    ("cuda", "graphs"): "",
    ("recompute", "graphs"): "",  # a step has no backward pass, and nothing is recomputed
    ("recompute", "compile"): "a model whose layers are recomputed cannot be compiled: switch recompute off first",
    ("tensor", "compile"): "a model sharded by tensor parallelism cannot be compiled: give up one of the two",
    ("invariant", "compile"): (
        "a batch-invariant model cannot be compiled, as compiled kernels round by the shape: give up one of the two"
    ),
}


HOOKS_OF_ALL = (  # of torch, on every module
    torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks,
    torch_module._global_backward_hooks, torch_module._global_backward_pre_hooks,
)  # fmt: skip


class StandIn:
    """Replaces the forward of one module; `plan` is its plan's name, `under` what another plan put there before.

    processes: how many of them share the module's outputs, and so the heads of an attention.
    """

    plan: ClassVar[str]
    processes: int = 1
    under: "StandIn | None" = None

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def plain(self, *args: Any, **named: Any) -> Any:
        """The forward of the plan before, or of the module's own class."""
        if self.under is not None:
            return self.under(*args, **named)
        return type(self.module).forward(self.module, *args, **named)

    def __call__(self, *args: Any, **named: Any) -> Any:
        """Run in the place of the module's forward."""
        raise NotImplementedError

    def read_rows(self, token_ids: Sequence[int], context: "Paged") -> Tensor | None:
        """The fp32 logits (n, V) of the wanted rows of a step, without the module's forward, where the plan can.

        That is after the first pass of the context's run, as that forward saw all there is to look at. None elsewhere.
        """
        return None

    def undo(self, model: nn.Module) -> None:
        """Undo what the plan has changed in the model other than forwards."""


class PlanModule(nn.Module):
    """A module that a plan swaps in permanently; its weights have no names in checkpoints."""

    plan: ClassVar[str]

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        raise UnsupportedError(
            f"the plan {self.plan} has laid the weights of {prefix.rstrip('.')} end to end, which no checkpoint holds: "
            'save before it is applied, or load the model with kernels="off"'
        )


def apply(model: nn.Module, plan: str, stand_ins: Iterable[StandIn], *, also: Iterable[nn.Module] = ()) -> None:
    """Put a plan's stand-ins into their modules; a plan of the same name is removed first.

    also: further modules for `check`. Raises UnsupportedError where `check` does, and then changes nothing.
    """
    found = list(stand_ins)
    check(model, plan, [*also, *(one.module for one in found)])
    remove(model, plan)
    for one in found:
        one.under = stand_in_of(one.module)
        vars(one.module)["forward"] = one


def remove(model: nn.Module, plan: str) -> None:
    """Undo a plan; a model without it stays as it is. Raises UnsupportedError for a plan that is permanent."""
    _check_name(plan)
    if any(isinstance(module, PlanModule) and module.plan == plan for module in model.modules()):
        raise UnsupportedError(f"the plan {plan} swapped the model's layers for good: load the model again")
    removed: list[StandIn] = []
    for module in model.modules():
        chain = stand_ins_of(module)
        rest = [one for one in chain if one.plan != plan]
        removed += [one for one in chain if one.plan == plan]
        if len(rest) < len(chain):
            _put(module, rest)
    for one in removed[:1]:  # the stand-ins of a plan all undo the same
        one.undo(model)


def active(model: nn.Module) -> tuple[str, ...]:
    """The names of the plans of a model and its modules, in the order of `PLANS`."""
    found = {one.plan for module in model.modules() for one in stand_ins_of(module)}
    found |= {module.plan for module in model.modules() if isinstance(module, PlanModule)}
    return tuple(plan for plan in PLANS if plan in found)


def processes_of(model: nn.Module) -> int:
    """How many processes share the heads of a model; 1 without a plan that divides them."""
    return max((one.processes for module in model.modules() for one in stand_ins_of(module)), default=1)


def plan_of(module: nn.Module) -> str | None:
    """The name of the last plan that replaces this module's own forward, or None."""
    own = stand_in_of(module)
    if own is not None:
        return own.plan
    return module.plan if isinstance(module, PlanModule) else None


def stand_in_of(module: nn.Module) -> StandIn | None:
    """The stand-in for this module's own forward, or None; of several the one that runs first."""
    own = vars(module).get("forward")
    return own if isinstance(own, StandIn) else None


def stand_ins_of(module: nn.Module) -> list[StandIn]:
    """The stand-ins for this module's own forward, the one that runs first before the others."""
    found, own = list[StandIn](), stand_in_of(module)
    while own is not None:
        found.append(own)
        own = own.under
    return found


def _put(module: nn.Module, chain: list[StandIn]) -> None:
    """Let these stand-ins, and no others, replace a module's forward."""
    for one, under in zip(chain, [*chain, None][1:], strict=True):
        one.under = under
    if chain:
        vars(module)["forward"] = chain[0]
    else:
        del module.__dict__["forward"]


def is_replaced(module: nn.Module) -> bool:
    """Whether a plan or anything else replaces this module's own forward."""
    return "forward" in vars(module)


def has_hooks(module: nn.Module) -> bool:
    """Whether something else than the forward of the module's class runs when it is called, or in its backward pass."""
    own = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return is_replaced(module) or any(own) or any(HOOKS_OF_ALL)


def check(model: nn.Module, plan: str, modules: Iterable[nn.Module] = ()) -> None:
    """Raise UnsupportedError where a plan does not go with those of a model, or with a forward from elsewhere.

    modules: their forwards must be those of their classes or of plans.
    """
    _check_name(plan)
    for on in active(model):
        if on != plan and PAIRS.get((on, plan)) != "":
            refuse(on, plan)
    if any(is_replaced(module) and stand_in_of(module) is None for module in modules):
        raise UnsupportedError(
            f"the model's forward is another plan's already, and not from llamita: take that back, or leave {plan} out"
        )


def refuse(on: str, plan: str) -> Never:
    """Raise UnsupportedError, which says why a plan does not go with an active one."""
    raise UnsupportedError(
        PAIRS.get((on, plan))
        or f"the model's forward is another plan's already, {on}, and {plan} does not go with it: "
        f"take that back by {PLANS[on]}, or leave {plan} out"
    )


def _check_name(plan: str) -> None:
    if plan not in PLANS:
        raise UsageError(f"no plan is named {plan!r}: use one of {', '.join(PLANS)}")
