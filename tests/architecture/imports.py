"""Arrows: which module imports which, where it may, and that the arrows never close a ring."""

import ast
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from tests.architecture.source import Module

# A row imports only rows above it in this table; rooms of one row do not import each other. The ground is one room.
ROWS: tuple[frozenset[str], ...] = tuple(
    frozenset(row.split())
    for row in (
        "errors checks habits config families presets cria __version__",
        "kernels files",
        "attention cache tokenizer",
        "context",
        "sampling",
        "structured",
        "model",
        "quant adapters parallel plans",
        "checkpoint generation data",
        "engine",
        "train",
        "llm",
        "loader",
        "evaluation",
        "bridge",
        "server bench verify arithmetic",
        "cli",
        "__main__",
    )
)

NO_MODULES = frozenset({"cria", "__version__"})  # of these: data, and a name of the package itself

# (module, target): the few imports inside a method that reach down the table.
DEFERRED: frozenset[tuple[str, str]] = frozenset(
    {
        ("llamita.model.pretrained", "llamita.generation.hf"),  # `generate` on the model class
        ("llamita.model.pretrained", "llamita.plans.recompute"),  # `gradient_checkpointing_enable`
        ("llamita.model.files", "llamita.parallel.slices"),  # `from_pretrained(shard=...)`
        ("llamita.model.files", "llamita.parallel.tensor"),  # `from_pretrained(device_mesh=...)`
        ("llamita.model.files", "llamita.plans.invariant"),  # `from_pretrained(deterministic=True)`
    }
)

# Libraries that only these rooms or files may import, wherever in the file.
ONLY_IN: dict[str, tuple[str, ...]] = {
    "transformers": ("bridge", "bench.peers"),
    "peft": ("bridge", "bench.peers"),
    "lm_eval": ("bridge", "bench.peers"),
    "pyarrow": ("data.tables",),
    "datasets": ("data.tables",),
    "huggingface_hub": ("files.hub", "cli"),
    "safetensors": ("files",),
    "tokenizers": ("tokenizer",),
    "jinja2": ("tokenizer",),
    "llguidance": ("structured",),
    "numba": ("kernels", "bench.bandwidth"),
    "llvmlite": ("kernels",),
    "triton": ("kernels",),
    "rich": ("cli", "bench", "verify", "train"),
    "fastapi": ("server",),
    "uvicorn": ("server", "cli"),
    "ray": ("server.replicas.deployment", "server.ray_cluster", "server.batch.ray_data"),
    "torch": tuple(sorted(frozenset.union(*ROWS) - ROWS[0])),
}

# Libraries that are dear to load: at the top of a file only in these, which are themselves loaded when chosen.
TOP_ONLY_IN: dict[str, tuple[str, ...]] = {
    "transformers": ("bridge", "bench.peers"),
    "peft": ("bridge",),
    "lm_eval": ("bridge",),
    "pyarrow": (),
    "datasets": (),
    "huggingface_hub": (),
    "llguidance": (),
    "numba": ("kernels", "bench.bandwidth"),
    "llvmlite": ("kernels",),
    "triton": ("kernels",),
    "flash_attn": (),
    "jinja2": ("tokenizer.chat", "tokenizer.template"),
    "tokenizers": ("tokenizer.load", "tokenizer.huggingface"),
    "rich": ("cli", "bench", "verify"),
    "fastapi": ("server",),
    "uvicorn": ("server",),
    "ray": ("server.replicas.deployment", "server.batch.ray_data"),
    "torch.nn.attention.flex_attention": ("attention.flex",),
    "torch.nn.attention.varlen": ("attention.flash",),
}


@dataclass(frozen=True)
class Import:
    """One arrow: from a module to what it names, at a line."""

    module: Module
    target: str
    line: int
    in_function: bool
    for_types: bool

    def __str__(self) -> str:
        return f"{self.module.name}:{self.line} imports {self.target}"


def imports_of(module: Module, known: Collection[str] = ()) -> Iterator[Import]:
    """Every import of a module, function bodies, TYPE_CHECKING and names of modules in strings included.

    `known`: dotted names that are modules, so that `from package import module` is an arrow to the module.
    """
    for node, in_function, for_types in module.import_nodes:
        for target in _targets(node, module, known):
            yield Import(module, target, getattr(node, "lineno", 1), in_function, for_types)


def _targets(node: ast.AST, module: Module, known: Collection[str]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        origin = _absolute(node, module)
        for alias in node.names:
            full = f"{origin}.{alias.name}"
            is_own_name = full in known or full in TOP_ONLY_IN or alias.name == "__version__"
            yield full if is_own_name else origin
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        # A table of module names for `import_module` is a bundle of arrows too.
        name = node.value.partition(":")[0]
        if re.fullmatch(r"\w+(\.\w+)+", name) and name in known:
            yield name


def _absolute(node: ast.ImportFrom, module: Module) -> str:
    if not node.level:
        return node.module or ""
    parts = module.name.split(".")
    parts = parts[: len(parts) - node.level + module.is_package]
    return ".".join([*parts, *([node.module] if node.module else [])])


def arrows(modules: list[Module]) -> list[Import]:
    """The imports that stay inside the package, without those of its own `__init__`, which is only a table of names."""
    package = modules[0].name.partition(".")[0]
    known = {module.name for module in modules}
    inner = [arrow for module in modules if module.room for arrow in imports_of(module, known)]
    return [arrow for arrow in inner if arrow.target.split(".")[0] == package]


def wrong_arrows(
    modules: list[Module], rows: tuple[frozenset[str], ...] = ROWS, deferred: Collection[tuple[str, str]] = DEFERRED
) -> list[str]:
    """Imports that go down the table, across a row or through the package's front door, and rooms without a row."""
    place = {room: row for row, rooms in enumerate(rows) for room in rooms}
    complaints = [f"{m.name} is in no row" for m in modules if m.room and m.room not in place]
    for arrow in arrows(modules):
        room, target = arrow.module.room, arrow.target.partition(".")[2].partition(".")[0]
        if room not in place or room == target or place[room] == place.get(target) == 0:
            continue
        if arrow.in_function and (arrow.module.name, arrow.target) in deferred:
            continue
        if not target:
            complaints.append(f"{arrow}: name the module that defines it")
        elif place.get(target, len(rows)) >= place[room]:
            complaints.append(f"{arrow}: row {place[room]} may not import row {place.get(target, 'nowhere')}")
    return complaints


def idle_deferrals(modules: list[Module], deferred: Collection[tuple[str, str]] = DEFERRED) -> list[str]:
    """Allowed exceptions that nobody needs any more."""
    seen = {(arrow.module.name, arrow.target) for arrow in arrows(modules) if arrow.in_function}
    names = {module.name for module in modules}
    return [f"{a} -> {b} is allowed but not there" for a, b in deferred if {a, b} <= names and (a, b) not in seen]


def absent_names(
    modules: list[Module],
    rows: tuple[frozenset[str], ...] = ROWS,
    tables: Collection[Mapping[str, tuple[str, ...]]] = (ONLY_IN, TOP_ONLY_IN),
) -> list[str]:
    """Names in the tables that no file or folder of the package has any more."""
    listed = {*frozenset.union(*rows)} | {place for table in tables for places in table.values() for place in places}
    known = {module.name.partition(".")[2] for module in modules} | {module.room for module in modules} | NO_MODULES
    return [f"{name} is listed and not there" for name in sorted(listed - known)]


def cycles(modules: list[Module], deferred: Collection[tuple[str, str]] = DEFERRED) -> list[list[str]]:
    """Rings of modules that import each other, type-checking imports included, allowed deferrals left out."""
    graph: dict[str, set[str]] = {module.name: set() for module in modules}
    for arrow in arrows(modules):
        pair = (arrow.module.name, arrow.target)
        if arrow.target in graph and not (arrow.in_function and pair in deferred):
            graph[arrow.module.name].add(arrow.target)
    reach = {name: _reachable(graph, name) for name in graph}
    rings = {tuple(sorted(b for b in reach[a] if a in reach[b])) for a in graph if a in reach[a]}
    return [list(ring) for ring in sorted(rings)]


def _reachable(graph: Mapping[str, set[str]], start: str) -> set[str]:
    seen: set[str] = set()
    waiting = list(graph[start])
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting.extend(graph[name])
    return seen


def stray_libraries(
    modules: list[Module],
    only_in: Mapping[str, tuple[str, ...]] = ONLY_IN,
    top_only_in: Mapping[str, tuple[str, ...]] = TOP_ONLY_IN,
) -> list[str]:
    """Libraries imported outside the rooms that may, or at the top of a file where they must wait until needed."""
    complaints = []
    for module in modules:
        where = module.name.partition(".")[2]
        for arrow in imports_of(module):
            for library, places in _matching(arrow.target, only_in):
                if not _within(where, places):
                    complaints.append(f"{arrow}: {library} belongs to {', '.join(places)}")
            if not arrow.in_function and not arrow.for_types:
                for library, places in _matching(arrow.target, top_only_in):
                    if not _within(where, places):
                        complaints.append(f"{arrow} at the top: import {library} inside the function that needs it")
    return complaints


def _matching(target: str, table: Mapping[str, tuple[str, ...]]) -> Iterator[tuple[str, tuple[str, ...]]]:
    return ((library, places) for library, places in table.items() if _within(target, (library,)))


def _within(name: str, places: tuple[str, ...]) -> bool:
    return any(name == place or name.startswith(f"{place}.") for place in places)
