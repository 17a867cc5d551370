"""The package keeps its shape, and the checkers that say so can fail."""

import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.architecture import closure, imports, mirror, shape, words
from tests.architecture.source import ROOT, Module, percentile, read_package

PACKAGE = ROOT / "llamita"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
NONE = frozenset[str]()

Checker = Callable[[list[Module]], list[str]]

RULES: list[Checker] = [
    imports.wrong_arrows,
    imports.idle_deferrals,
    imports.absent_names,
    imports.stray_libraries,
    shape.long_files,
    shape.drawers,
    shape.undocumented,
    shape.unannotated,
    shape.crowds_of_booleans,
    shape.prints,
    shape.loose_state,
    shape.by_default,
    words.retired,
    words.unplain,
]


@pytest.fixture(scope="module")
def modules() -> list[Module]:
    return read_package(PACKAGE)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_package_keeps_rule(rule: Checker, modules: list[Module]) -> None:
    assert rule(modules) == []


def test_no_import_cycles(modules: list[Module]) -> None:
    assert imports.cycles(modules) == []


def test_no_import_cycles_where_deferred_imports_count(modules: list[Module]) -> None:
    assert imports.cycles(modules, NONE) == []


def test_generation_has_few_files(modules: list[Module]) -> None:
    assert shape.files_in(modules, "generation") <= shape.GENERATION_FILES


def test_road_to_the_first_token_is_short(modules: list[Module]) -> None:
    road = closure.road(modules, PACKAGE)
    assert {"llamita.llm", "llamita.sampling.sampler"} <= {module.name for module in road}
    assert len(road) <= closure.TO_FIRST_TOKEN, [module.name for module in road]


def test_functions_are_short(modules: list[Module]) -> None:
    assert shape.function_p90(modules) <= shape.FUNCTION_LINES_P90


def test_forward_to_logits_is_read_in_one_sitting(modules: list[Module]) -> None:
    reached = closure.closure(modules, PACKAGE)
    assert "llamita.model.llama" in {module.name for module in reached}
    assert len(reached) <= closure.MODULES, [module.name for module in reached]
    assert sum(module.code_lines for module in reached) <= closure.CODE_LINES, {m.name: m.code_lines for m in reached}


def test_unit_tests_mirror_the_package() -> None:
    assert mirror.strays(ROOT / "tests" / "unit", PACKAGE) == []


def test_dependencies_are_few() -> None:
    assert len(PROJECT["project"]["dependencies"]) <= shape.CORE_DEPENDENCIES


def test_package_is_small_and_ships_whole() -> None:
    assert sum(path.stat().st_size for path in shape.shipped(PACKAGE)) <= shape.WHEEL_BYTES
    assert shape.unshipped(PACKAGE, PROJECT["tool"]["setuptools"]["package-data"]) == []


# The checkers themselves, on small packages that break one rule each.


@pytest.fixture
def fake(tmp_path: Path) -> Callable[..., list[Module]]:
    """Write a package `toy` from {path without .py: source} and read it."""

    def write(**files: str) -> list[Module]:
        for name, text in {"__init__": "", **files}.items():
            path = tmp_path / "toy" / f"{name.replace('__in__', '/')}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return read_package(tmp_path / "toy")

    return write


TOY_ROWS = (frozenset({"ground", "config", "__version__"}), frozenset({"model", "cache"}), frozenset({"cli"}))


@pytest.mark.parametrize(
    "source",
    [
        "import toy.cli",
        "from toy import cli",
        "from toy.cli import main",
        "from . import cli",
        "from .cli import main",
        "def f():\n    from toy.cli import main",
        "class A:\n    def f(self):\n        import toy.cli",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from toy.cli import main",
        "VERBS = {'main': 'toy.cli'}",
        "VERBS = {'main': 'toy.cli:main'}",
        "from toy import cache",
        "from toy import Name",
        "import toy",
        "import toy.absent",
    ],
)
def test_arrow_down_across_or_through_the_door_is_found(source: str, fake: Callable[..., list[Module]]) -> None:
    package = fake(model=source, cli="", cache="")
    assert len(imports.wrong_arrows(package, TOY_ROWS, NONE)) == 1


@pytest.mark.parametrize(
    "source", ["from toy.config import A", "from .config import A", "from toy import __version__", "X = 'cli'"]
)
def test_arrow_up_is_fine(source: str, fake: Callable[..., list[Module]]) -> None:
    package = fake(model=source, config="from toy.ground import B", ground="")
    assert imports.wrong_arrows(package, TOY_ROWS, NONE) == []


def test_room_may_import_itself(fake: Callable[..., list[Module]]) -> None:
    package = fake(model__in____init__="", model__in__a="from toy.model import b\nfrom . import b", model__in__b="")
    assert imports.wrong_arrows(package, TOY_ROWS, NONE) == []


def test_room_without_row_is_found(fake: Callable[..., list[Module]]) -> None:
    assert imports.wrong_arrows(fake(attic=""), TOY_ROWS, NONE) == ["toy.attic is in no row"]


def test_listed_name_that_is_not_there_is_found(fake: Callable[..., list[Module]]) -> None:
    rows = (frozenset({"config"}), frozenset({"attic"}))
    found = imports.absent_names(fake(config=""), rows, [{"numba": ("config", "config.far")}])
    assert found == ["attic is listed and not there", "config.far is listed and not there"]


def test_deferral_holds_inside_a_function_only(fake: Callable[..., list[Module]]) -> None:
    deferred = {("toy.model", "toy.cli")}
    inside = fake(model="def f():\n    from toy.cli import main", cli="")
    assert imports.wrong_arrows(inside, TOY_ROWS, deferred) == imports.idle_deferrals(inside, deferred) == []
    outside = fake(model="from toy.cli import main", cli="")
    assert len(imports.wrong_arrows(outside, TOY_ROWS, deferred)) == len(imports.idle_deferrals(outside, deferred)) == 1


@pytest.mark.parametrize(
    "last", ["import toy.a", "def f():\n    from toy import a", "if TYPE_CHECKING:\n    from toy.a import A"]
)
def test_cycle_is_found(last: str, fake: Callable[..., list[Module]]) -> None:
    package = fake(a="from toy.b import B", b="from toy.c import C", c=last, d="import toy.a")
    assert imports.cycles(package, NONE) == [["toy.a", "toy.b", "toy.c"]]


def test_no_cycle_where_arrows_only_meet(fake: Callable[..., list[Module]]) -> None:
    assert imports.cycles(fake(a="import toy.b\nimport toy.c", b="import toy.d", c="import toy.d", d=""), NONE) == []


def test_stray_library_is_found(fake: Callable[..., list[Module]]) -> None:
    only_in = {"hub": ("files.hub",)}
    top = {"hub": (), "torch.dear": ("model.dear",)}
    package = fake(
        files__in__hub="import hub.inner",
        model__in__a="def f():\n    import hub",
        model__in__b="from torch import dear\nfrom torch.dear import x\nfrom torch import cheap",
        model__in__dear="from torch.dear import x",
    )
    found = imports.stray_libraries(package, only_in, {**top, "torch.dear": ("model.dear",)})
    assert [complaint.split(":")[0] for complaint in found] == ["toy.files.hub", "toy.model.a", "toy.model.b"]


def test_unit_test_of_no_module_is_found(tmp_path: Path) -> None:
    for name in (
        "toy/a.py",
        "toy/b/c.py",
        "unit/test_a.py",
        "unit/b/test_b.py",
        "unit/b/test_c.py",
        "unit/b/test_d.py",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found = mirror.strays(tmp_path / "unit", tmp_path / "toy", {"test_a.py": "needless"})
    assert [complaint.split()[0] for complaint in found] == ["b/test_d.py", "test_a.py"]
    assert mirror.strays(tmp_path / "unit", tmp_path / "toy", {"b/test_d.py": "why"}) == []


def test_long_file_and_long_functions_are_found(fake: Callable[..., list[Module]]) -> None:
    package = fake(a="def f():\n" + "    pass\n" * 40)
    assert len(shape.long_files(package, 40)) == 1
    assert shape.long_files(package, 41) == []
    assert shape.function_p90(package) == 41
    assert [percentile(list(range(1, 11)), share) for share in (0.0, 0.5, 0.9, 1.0)] == [1, 5, 9, 10]


def test_drawer_is_found(fake: Callable[..., list[Module]]) -> None:
    assert len(shape.drawers(fake(model__in__utils="", common="", rope=""))) == 2


def test_retired_module_is_found(fake: Callable[..., list[Module]]) -> None:
    package = fake(cache__in__trials="", cache__in__convention="", model__in__trials="")
    assert len(words.retired(package, folders=frozenset({"cache"}))) == 2


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("def place(self): pass", 1),
        ("def make_rooms(told, *, beside): pass", 3),
        ("class Feed: pass", 1),
        ("class A:\n    def __init__(self): self._kept = 1", 1),
        ("f = lambda trail: 1", 1),
        ("class A:\n    kept: int", 1),
        ("def replace(mushroom): kept = 1", 0),
        ("class FeedForward: pass", 0),
    ],
)
def test_retired_word_is_found(source: str, count: int, fake: Callable[..., list[Module]]) -> None:
    assert len(words.retired(fake(cache=source, model=source), folders=frozenset({"cache"}))) == count


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ('"""What stands behind it."""', 1),
        ("x = 1  # Anew", 1),
        ('raise A(f"{x} was told {y}")', 1),
        ("behind = 1", 0),
        ('"""The besides of it."""', 0),
        ('"--beside-load"', 0),
        ('"""A call that is `beside` another."""', 0),
        ('"""As many threads, of so\n    many rows."""', 1),
    ],
)
def test_a_retired_word_is_found_in_prose(source: str, count: int, fake: Callable[..., list[Module]]) -> None:
    assert len(words.unplain(fake(quant=source))) == count


def test_a_word_may_be_retired_in_one_folder_alone(fake: Callable[..., list[Module]]) -> None:
    assert len(words.retired(fake(quant="class A:\n    form: str", cache="class A:\n    form: str"))) == 1


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("x = 1", 1),
        ('"""A."""\ndef f(): pass', 1),
        ('"""A."""\nclass A:\n    def f(self): pass', 2),
        ('"""A."""\nclass A:\n    """B."""\n    def __len__(self): pass\n    def _f(self): pass', 0),
        ('"""A."""\ndef _f():\n    def g(): pass', 0),
        ('"""A."""\nif True:\n    async def f(): pass', 1),
    ],
)
def test_missing_docstring_is_found(source: str, count: int, fake: Callable[..., list[Module]]) -> None:
    assert len(shape.undocumented(fake(a=source))) == count


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("def f(a, *b, c=1, **d): pass", 5),
        ("def f(a: int, *b: int, c: int = 1, **d: int) -> None: pass", 0),
        ("class A:\n    def f(self) -> None: pass\n    def __init__(self, a): pass", 2),
        ("class _A:\n    def f(self, a): pass", 0),
    ],
)
def test_missing_type_is_found(source: str, count: int, fake: Callable[..., list[Module]]) -> None:
    assert len(shape.unannotated(fake(a=source))) == count


def test_crowd_of_booleans_is_found(fake: Callable[..., list[Module]]) -> None:
    fields = "class A:\n    a: bool\n    b: bool = True\n    c: bool | None\n    d: int = 0\n    use_cache: bool = 1"
    assert len(shape.crowds_of_booleans(fake(a=fields), 2)) == 1
    assert shape.crowds_of_booleans(fake(a=fields), 3) == []


def test_print_is_found(fake: Callable[..., list[Module]]) -> None:
    assert len(shape.prints(fake(model="def f():\n    print(1)", cli="print(1)"))) == 1


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("seen = {}", 1),
        ("seen: list[int] = []", 1),
        ("lock = threading.Lock()", 1),
        ("def f():\n    global x\n    x = 1", 1),
        ("TABLE = {}\n_TABLE = []\n__all__ = []\nT = TypeVar('T')\nx = 1\nlogger = logging.getLogger('a')", 0),
        ("def f():\n    seen = {}", 0),
    ],
)
def test_loose_state_is_found(source: str, count: int, fake: Callable[..., list[Module]]) -> None:
    assert len(shape.loose_state(fake(a=source))) == count


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("torch.empty(3)", 2),
        ("def f(x):\n    return torch.zeros(len(x), dtype=x.dtype)", 1),
        ("torch.empty(3, dtype=a, device=b)\ntorch.empty_like(x)\ntorch.arange(3, device=b)", 0),
    ],
)
def test_a_default_buffer_is_found(source: str, count: int, fake: Callable[..., list[Module]]) -> None:
    assert len(shape.by_default(fake(plans__in__a=source, model=source), ("plans",))) == count


def test_data_left_behind_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "toy"
    (folder / "data").mkdir(parents=True)
    (folder / "__pycache__").mkdir()
    for name in ("a.py", "py.typed", "data/x.json", "__pycache__/a.pyc"):
        (folder / name).touch()
    assert shape.unshipped(folder, {"toy": ["py.typed"]}) == ["data/x.json"]
    assert shape.unshipped(folder, {"toy": ["py.typed", "data/*"]}) == []


def test_code_lines_leave_out_blanks_comments_and_docstrings(fake: Callable[..., list[Module]]) -> None:
    table = '"""One\n\ntwo."""\n\n# three\nX = (\n    1,  # four\n    # five\n)\n'
    function = 'def f():\n    """Six."""\n\n    return """7\n8"""\n'
    assert [module.code_lines for module in fake(a=table, b=function)] == [0, 3, 3]


def test_trace_sees_functions_that_run_and_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "traced_run.py").write_text("import traced_import\ndef f(): return traced_import.X\n")
    (tmp_path / "traced_import.py").write_text("def g(): return 1\nX = g()\n")
    monkeypatch.syspath_prepend(tmp_path)

    def call() -> None:
        from traced_run import f  # pyright: ignore[reportMissingImports]

        f()

    assert {path.name for path in closure.files_run(call, tmp_path)} == {"traced_run.py"}


def test_trace_ends_with_the_function_that_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "walked_first.py").write_text("import walked_then\ndef f(): walked_then.g()\n")
    (tmp_path / "walked_then.py").write_text("def g(): return 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    from walked_first import f  # pyright: ignore[reportMissingImports]

    found = {until: len(closure.files_run(f, tmp_path, until=until)) for until in ("", "f", "g")}
    assert found == {"": 2, "f": 1, "g": 2}
