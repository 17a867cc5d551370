"""Which module a unit test is about: tests/unit/X/test_Y.py tests llamita/X/Y.py, or the folder Y or X."""

from collections.abc import Mapping
from pathlib import Path

# Tests that are about more than one module, and why.
ACROSS: Mapping[str, str] = {
    "checkpoint/test_gguf_odd.py": "odd tensors through reader, loader and quantized layers",
    "checkpoint/test_incomplete.py": "missing weights, as the loader, the classes and the command line see them",
    "cli/test_odd_values.py": "values of files that every command may meet",
    "cli/test_outputs.py": "where convert and quantize write",
    "cli/test_pipes.py": "a closed pipe, under every command",
    "files/test_gguf_hostile.py": "damaged files, through gguf, gguf_split and gguf_cursor",
    "generation/test_rules.py": "structured output under every strategy of model.generate",
    "kernels/cpu/runtime/test_elsewhere.py": "kernels of every file, compiled for lesser processors",
    "plans/cpu/test_changes.py": "whatever becomes of a fused model, through forward, parts and watch",
    "plans/cpu/test_defaults.py": "torch's default dtype and device, under passes, quantized layers and formats",
    "test_cria_corpus.py": "recipes/cria: plain texts and everyday talk",
    "test_cria_recipe.py": "recipes/cria",
    "test_gpu_bench.py": "benchmarks/gpu.py and its page",
    "test_llm_numbers.py": "numbers that LLM's options may be",
}


def strays(unit: Path, package: Path, across: Mapping[str, str] = ACROSS) -> list[str]:
    """Unit tests named after no module, and entries of the list that no test needs."""
    tests = {path.relative_to(unit).as_posix(): path for path in sorted(unit.rglob("test_*.py"))}
    named = {name for name, path in tests.items() if _is_named(path, unit, package)}
    unnamed = tests.keys() - named
    complaints = [f"{name} is named after no module: rename it" for name in sorted(unnamed - across.keys())]
    return complaints + [f"{name} is listed and need not be" for name in sorted(across.keys() - unnamed)]


def _is_named(path: Path, unit: Path, package: Path) -> bool:
    folder, name = package / path.parent.relative_to(unit), path.stem.removeprefix("test_")
    return (folder / f"{name}.py").is_file() or (folder / name).is_dir() or (folder.is_dir() and folder.name == name)
