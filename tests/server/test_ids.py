"""Every promise of the serving specification has a test that is named by its id, in the folders issue 12 names."""

import ast
import re

import pytest

from tests.architecture.source import ROOT

FOLDERS = ("tests/unit/engine", "tests/property/engine", "tests/server")
IDS = [*(f"r{number}" for number in range(1, 37)), *(f"ts{number}" for number in range(1, 22))]
NAMED = re.compile(r"(?:ts|r)\d+(?![0-9a-z])")


def named() -> set[str]:
    """The ids in the names of test files, and of the tests and classes of tests in them: what `pytest -k` selects."""
    paths = [path for folder in FOLDERS for path in (ROOT / folder).rglob("test_*.py")]
    nodes = [node for path in paths for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    names = [node.name for node in nodes if isinstance(node, ast.FunctionDef)]
    names += [target.id for node in nodes if isinstance(node, ast.Assign) for target in node.targets
              if isinstance(target, ast.Name)]  # fmt: skip
    tests = [path.stem for path in paths] + [name for name in names if name.lower().startswith("test")]
    return {found for name in tests for found in NAMED.findall(re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower())}


@pytest.fixture(scope="module")
def found() -> set[str]:
    return named()


@pytest.mark.parametrize("name", IDS)
def test_every_promise_has_a_test(name: str, found: set[str]) -> None:
    assert name in found
