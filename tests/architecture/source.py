"""The package as text: one parsed module after another, nothing imported, nothing run."""

import ast
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parents[2]

Function = ast.FunctionDef | ast.AsyncFunctionDef
MAY_IMPORT = (ast.Import, ast.ImportFrom, ast.Constant)
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
SILENT_TOKENS = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING,
    tokenize.ENDMARKER,
}  # fmt: skip


@dataclass(frozen=True)
class Module:
    """One file of the package: its dotted name, path, text and syntax tree."""

    name: str
    path: Path

    @property
    def is_package(self) -> bool:
        """Is this the `__init__` of a folder?"""
        return self.path.stem == "__init__"

    @property
    def room(self) -> str:
        """The top-level folder or file it lives in; "" for the package's own `__init__`."""
        return self.name.partition(".")[2].partition(".")[0]

    @cached_property
    def text(self) -> str:
        """The source."""
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def tree(self) -> ast.Module:
        """The syntax tree."""
        return ast.parse(self.text, str(self.path))

    @cached_property
    def nodes(self) -> list[ast.AST]:
        """Every node of the syntax tree."""
        return list(ast.walk(self.tree))

    @cached_property
    def import_nodes(self) -> list[tuple[ast.AST, bool, bool]]:
        """Every import and constant: the node, and whether it is inside a function, and for type checkers alone."""
        return [placed for placed in _walk(self.tree, False, False) if isinstance(placed[0], MAY_IMPORT)]

    @cached_property
    def functions(self) -> list[Function]:
        """Every function and method, nested ones included."""
        return [node for node in self.nodes if isinstance(node, Function)]

    @property
    def length(self) -> int:
        """Lines of the file, all of them."""
        return len(self.text.splitlines())

    @cached_property
    def code_lines(self) -> int:
        """Lines that hold code: no blanks, comments or docstrings."""
        with tokenize.open(self.path) as file:
            tokens = [t for t in tokenize.generate_tokens(file.readline) if t.type not in SILENT_TOKENS]
        lines = {line for token in tokens for line in range(token.start[0], token.end[0] + 1)}
        return len(lines - set(self._docstring_lines()))

    def _docstring_lines(self) -> Iterator[int]:
        for node in self.nodes:
            if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
                text = node.body[0]
                yield from range(text.lineno, (text.end_lineno or text.lineno) + 1)


def _walk(node: ast.AST, in_function: bool, for_types: bool) -> Iterator[tuple[ast.AST, bool, bool]]:
    for child in ast.iter_child_nodes(node):
        guarded = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test) and child in node.body
        inside = in_function or isinstance(child, Function | ast.Lambda)
        yield child, inside, for_types or guarded
        yield from _walk(child, inside, for_types or guarded)


def read_package(folder: Path) -> list[Module]:
    """Every module under a package's folder, in order of name."""
    modules = []
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder.parent).with_suffix("").parts
        modules.append(Module(".".join(parts[:-1] if parts[-1] == "__init__" else parts), path))
    return modules


def length_of(function: Function) -> int:
    """Lines of a function from `def` to its end."""
    return (function.end_lineno or function.lineno) - function.lineno + 1


def percentile(values: list[int], share: float) -> int:
    """The smallest value that at least `share` of the values do not exceed; 0 for none."""
    ordered = sorted(values)
    return ordered[max(0, -int(-len(ordered) * share // 1) - 1)] if ordered else 0
