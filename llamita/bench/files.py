"""The files that systems load: the same weights in each system's file type. A separate process writes each file."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from llamita.bench.formats import is_quantized
from llamita.bench.systems import SYSTEMS, System, interpreter
from llamita.bench.workers import ProcessPerTurn, Run

# kind -> (module:function that writes it, suffix of its name, the system whose library writes it)
KINDS: dict[str, tuple[str, str, str]] = {
    "folder": ("llamita.bench.ours:save_folder", "", "llamita"),
    "gguf": ("llamita.bench.ours:save_blocks", ".gguf", "llamita"),
    "openvino": ("llamita.bench.peers.openvino:save", ".xml", "openvino"),
}


def written_file(system: System, shape_name: str, format: str, folder: Path, peers_python: str | None) -> Path:
    """The path of the file that a system loads in a format. Writes it into the folder if it is missing."""
    own = system.formats[format]
    kind = system.quantized_file if is_quantized(format) else system.file
    _, suffix, writer = KINDS[kind]
    path = folder / f"{shape_name}-{own}{suffix}"
    if not path.exists():
        python = interpreter(SYSTEMS[writer], peers_python)
        ProcessPerTurn(prepare, (kind, shape_name, own, path), threads=2, python=python).measure("run")
    return path


def prepare(kind: str, shape_name: str, format: str, path: Path) -> Run:
    """Prepare a run that writes the file and returns its size in bytes. Runs in a worker process."""
    module, _, function = KINDS[kind][0].partition(":")
    write: Callable[[str, str, Path], None] = getattr(import_module(module), function)

    def run() -> float:
        write(shape_name, format, path)
        return float(size(path))

    return run


def size(path: Path) -> int:
    """The size in bytes of a file, or of all files in a folder."""
    return sum(file.stat().st_size for file in files_of(path))


def files_of(path: Path) -> list[Path]:
    """A file, or all files in a folder."""
    return sorted(path.iterdir()) if path.is_dir() else [path]


def remove(folder: Path) -> None:
    """Delete everything in a folder."""
    for path in folder.iterdir():
        if path.is_dir():
            remove(path)
            path.rmdir()
        else:
            path.unlink()
