"""Sizes, names and words: what a file, a function and a class must look like."""

import ast
import re
from collections.abc import Collection, Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path

from tests.architecture.source import Function, Module, length_of, percentile

FILE_LINES = 400
FUNCTION_LINES_P90 = 16
GENERATION_FILES = 25  # that hold code
BOOLEANS = 4
CORE_DEPENDENCIES = 14
WHEEL_BYTES = 15_000_000
DRAWERS = frozenset({"utils", "util", "common", "helpers", "helper", "base", "misc", "manager", "core", "tools"})
PRINTERS = ("cli", "bench", "verify", "__main__")

# Booleans that the file format brings, not we: keys of config.json and generation_config.json.
FILE_FORMAT = {
    "use_cache", "tie_word_embeddings", "attention_bias", "mlp_bias", "output_attentions", "output_hidden_states",
    "return_dict", "is_encoder_decoder", "gradient_checkpointing", "truncate", "do_sample", "early_stopping",
    "renormalize_logits",
}  # fmt: skip

MUTABLE_CALLS = frozenset(
    {"list", "dict", "set", "bytearray", "defaultdict", "deque", "count", "local", "open", "compile"}
)


# Folders and files that give kernels the addresses of tensors; what makes a tensor, and what it must be told.
ADDRESSED = ("kernels.cpu", "kernels.blocks", "plans.cpu", "plans.training", "attention.trained", "quant.linear")
MAKERS: Mapping[str, tuple[str, ...]] = {
    "arange": ("device",),
    **dict.fromkeys(("empty", "full", "linspace", "ones", "rand", "randn", "tensor", "zeros"), ("dtype", "device")),
}


def long_files(modules: list[Module], limit: int = FILE_LINES) -> list[str]:
    """Files longer than the limit."""
    return [f"{m.name} has {m.length} lines, at most {limit}: split it" for m in modules if m.length > limit]


def function_p90(modules: list[Module]) -> int:
    """Nine functions of ten are at most this long."""
    return percentile([length_of(function) for module in modules for function in module.functions], 0.9)


def files_in(modules: list[Module], room: str) -> int:
    """How many files of a folder hold code."""
    return sum(module.room == room and module.code_lines > 0 for module in modules)


def drawers(modules: list[Module], names: Collection[str] = DRAWERS) -> list[str]:
    """Files and folders named after nothing in the domain."""
    return [f"{m.name}: {part} says nothing" for m in modules for part in m.name.split(".") if part in names]


def undocumented(modules: list[Module]) -> list[str]:
    """Public modules, classes, functions and methods without a docstring (dunders, overloads and setters need none)."""
    complaints = [f"{m.name} has no docstring" for m in modules if m.text.strip() and not ast.get_docstring(m.tree)]
    for module, node in _public(modules):
        told = isinstance(node, Function) and (_is_dunder(node.name) or _is_second_telling(node))
        if not told and not ast.get_docstring(node):
            complaints.append(f"{module.name}:{node.lineno} {node.name} has no docstring")
    return complaints


def unannotated(modules: list[Module]) -> list[str]:
    """Parameters and results of public functions and methods without a type."""
    complaints = []
    for module, node in _public(modules):
        if isinstance(node, Function):
            bare = [a.arg for a in _parameters(node) if a.annotation is None and a.arg not in ("self", "cls")]
            bare += [] if node.returns else ["its result"]
            complaints += [f"{module.name}:{node.lineno} {node.name}: {name} has no type" for name in bare]
    return complaints


def crowds_of_booleans(
    modules: list[Module], limit: int = BOOLEANS, file_format: Collection[str] = FILE_FORMAT
) -> list[str]:
    """Classes with more boolean fields of our own than the limit."""
    complaints = []
    for module in modules:
        for node in module.nodes:
            if isinstance(node, ast.ClassDef):
                ours = [name for name in _boolean_fields(node) if name not in file_format]
                if len(ours) > limit:
                    complaints.append(f"{module.name}:{node.lineno} {node.name} has {len(ours)} booleans: {ours}")
    return complaints


def prints(modules: list[Module], allowed: Collection[str] = PRINTERS) -> list[str]:
    """Calls of print outside the rooms that talk to a person."""
    return [
        f"{module.name}:{node.lineno} prints"
        for module in modules
        if module.room not in allowed
        for node in module.nodes
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]


def loose_state(modules: list[Module]) -> list[str]:
    """`global` statements, and containers or objects at module level that are no table in CAPITALS."""
    complaints = []
    for module in modules:
        for node in module.nodes:
            if isinstance(node, ast.Global):
                complaints.append(f"{module.name}:{node.lineno} global {', '.join(node.names)}")
        for node in _module_level(module.tree.body):
            if isinstance(node, ast.Assign | ast.AnnAssign) and _is_mutable(node.value):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names = [name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]
                complaints += [f"{module.name}:{node.lineno} {n} is loose state" for n in names if not _is_table(n)]
    return complaints


def unshipped(folder: Path, package_data: Mapping[str, list[str]]) -> list[str]:
    """Data files of a package that no pattern of its package-data takes along."""
    patterns = package_data.get(folder.name, [])
    names = [path.relative_to(folder).as_posix() for path in shipped(folder) if path.suffix != ".py"]
    return [name for name in names if not any(fnmatch(name, pattern) for pattern in patterns)]


def shipped(folder: Path) -> list[Path]:
    """Every file of a package's folder that is no by-product."""
    return [p for p in sorted(folder.rglob("*")) if p.is_file() and "__pycache__" not in p.parts]


def _public(modules: list[Module]) -> Iterator[tuple[Module, ast.ClassDef | Function]]:
    for module in modules:
        if not any(part.startswith("_") and not _is_dunder(part) for part in module.name.split(".")):
            yield from ((module, node) for node in _public_in(module.tree.body))


def _public_in(body: list[ast.stmt]) -> Iterator[ast.ClassDef | Function]:
    for node in _module_level(body):
        if isinstance(node, ast.ClassDef | Function) and (not node.name.startswith("_") or _is_dunder(node.name)):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from _public_in(node.body)


def _module_level(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements of a body, those under if, try and with included."""
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try | ast.With | ast.For | ast.While):
            inner = [s for s in ast.iter_child_nodes(node) if isinstance(s, ast.stmt)]
            handled = [s for h in getattr(node, "handlers", []) for s in h.body]
            yield from _module_level(inner + handled)


def _parameters(node: Function) -> list[ast.arg]:
    a = node.args
    return [*a.posonlyargs, *a.args, *a.kwonlyargs, *([a.vararg] if a.vararg else []), *([a.kwarg] if a.kwarg else [])]


def _is_dunder(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")


def _is_second_telling(node: Function) -> bool:
    names = {ast.unparse(decorator).rpartition(".")[2] for decorator in node.decorator_list}
    return bool(names & {"overload", "setter", "deleter", "override"})


def _boolean_fields(node: ast.ClassDef) -> list[str]:
    fields = [s for s in node.body if isinstance(s, ast.AnnAssign) and isinstance(s.target, ast.Name)]
    return [f.target.id for f in fields if isinstance(f.target, ast.Name) and _is_boolean(ast.unparse(f.annotation))]


def _is_boolean(annotation: str) -> bool:
    return re.fullmatch(r"bool( \| None)?|Optional\[bool\]", annotation.strip("'\"")) is not None


def _is_mutable(value: ast.expr | None) -> bool:
    if isinstance(value, ast.List | ast.Dict | ast.Set | ast.ListComp | ast.DictComp | ast.SetComp):
        return True
    if not isinstance(value, ast.Call):
        return False
    name = ast.unparse(value.func).rpartition(".")[2]
    return name in MUTABLE_CALLS or name[:1].isupper()


def _is_table(name: str) -> bool:
    return _is_dunder(name) or re.fullmatch(r"_?[A-Z][A-Z0-9_]*|[A-Z]\w*", name) is not None


def by_default(modules: list[Module], folders: Collection[str] = ADDRESSED) -> list[str]:
    """Tensors for kernels that are left to torch's default dtype and device, which are the user's to set."""
    complaints = []
    for module in modules:
        if not module.name.partition(".")[2].startswith(tuple(folders)):
            continue
        for node in module.nodes:
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("torch."):
                wanted, told = MAKERS.get(ast.unparse(node.func)[6:], ()), {one.arg for one in node.keywords}
                missing = [name for name in wanted if name not in told]
                complaints += [f"{module.name}:{node.lineno} says no {name}" for name in missing]
    return complaints
