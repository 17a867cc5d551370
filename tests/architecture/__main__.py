"""Print the package's figures: `python -m tests.architecture`."""

import tomllib

from rich import box
from rich.console import Console
from rich.table import Table

from tests.architecture import closure, imports, shape
from tests.architecture.source import ROOT, length_of, percentile, read_package


def main() -> None:
    """Print thresholds beside what was measured, and the modules of a forward pass and of the road to a token."""
    folder = ROOT / "llamita"
    modules = read_package(folder)
    reached, road = closure.closure(modules, folder), closure.road(modules, folder)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lengths = {f"{m.name}.{f.name}": length_of(f) for m in modules for f in m.functions}
    longest = max(modules, key=lambda module: module.length)
    longest_function = max(lengths, key=lambda name: lengths[name])

    figures = Table("figure", "measured", "limit", "which", box=box.SIMPLE_HEAD, title="llamita in figures")
    rows: list[tuple[str, object, object, str]] = [
        ("modules from forward to logits", len(reached), closure.MODULES, ""),
        ("their lines of code", sum(m.code_lines for m in reached), closure.CODE_LINES, ""),
        ("modules outside it to the first token", len(road), closure.TO_FIRST_TOKEN, ""),
        ("import cycles, deferred ones counted", len(imports.cycles(modules, ())), 0, ""),
        ("imports against the rows", len(imports.wrong_arrows(modules)), 0, ""),
        ("longest file, lines", longest.length, shape.FILE_LINES, longest.name),
        ("files of generation/", shape.files_in(modules, "generation"), shape.GENERATION_FILES, ""),
        ("function, lines, p50", percentile(list(lengths.values()), 0.5), "", ""),
        ("function, lines, p90", shape.function_p90(modules), shape.FUNCTION_LINES_P90, ""),
        ("longest function, lines", lengths[longest_function], "", longest_function),
        ("public things without a docstring", len(shape.undocumented(modules)), 0, ""),
        ("public parameters without a type", len(shape.unannotated(modules)), 0, ""),
        ("core dependencies", len(project["dependencies"]), shape.CORE_DEPENDENCIES, ""),
        ("package, MB before packing", f"{sum(p.stat().st_size for p in shape.shipped(folder)) / 1e6:.1f}", 15, ""),
        ("modules in all", len(modules), "", ""),
        ("lines of code in all", sum(m.code_lines for m in modules), "", ""),
    ]
    for name, measured, limit, which in rows:
        figures.add_row(name, str(measured), str(limit), which)

    path = Table("module", "lines of code", box=box.SIMPLE_HEAD, title="from LlamaForCausalLM.forward to logits")
    for module in reached:
        path.add_row(module.name, str(module.code_lines))

    steps = Table("module", "lines of code", box=box.SIMPLE_HEAD, title="from LLM.generate to its first token")
    for module in road:
        steps.add_row(module.name, str(module.code_lines))

    console = Console()
    console.print(figures)
    console.print(path)
    console.print(steps)


if __name__ == "__main__":
    main()
