"""A model's folder or GGUF file: a path as it is, or a name on the Hugging Face hub through its cache."""

import os
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from llamita.errors import AccessError, LlamitaError, NotFoundError, UsageError
from llamita.files.disk import explained, named_path

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*")
_GGUF = re.compile(rf"({_REPOSITORY.pattern}):([\w.-]+)")  # llama.cpp's way to name one of a repository's files
_WANTED = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model"]
_UNWANTED = ["*/*.json", "*/*.safetensors"]  # Exports and originals in folders within the repository.


def resolve(
    name_or_path: str,
    *,
    revision: str | None = None,
    offline: bool = False,
    subfolder: str = "",
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    force: bool = False,
) -> Path:
    """The folder of a model: a directory as it is, else `organisation/name` on the hub, downloaded once.

    What looks like a path is never sent to the hub; HF_HOME, HF_TOKEN and HF_HUB_OFFLINE are honoured.
    subfolder: the model's place in the directory or the repository. token, cache_dir: in place of HF_TOKEN, HF_HOME.
    force: download again.
    Raises NotFoundError (nothing there, or the network is off), AccessError (gated or private), UsageError (a file).
    """
    if is_gguf_name(name_or_path):
        raise UsageError(f"{name_or_path} names a GGUF file, not a folder: llamita.load({name_or_path!r}) reads it")
    path = named_path(name_or_path)
    with explained("read", path):
        if name_or_path and path.is_dir():
            return path / subfolder
        if path.is_file() and path.suffix.lower() == ".gguf":
            raise UsageError(
                f"{name_or_path} is a GGUF file, not a folder: llamita.load({name_or_path!r}).model reads it"
            )
        if path.is_file():
            raise UsageError(_about_file(name_or_path, path))
        if path.name and path.with_name(f"{path.name}.gguf").is_file():
            raise NotFoundError(f"there is no folder {name_or_path}: did you mean the file {name_or_path}.gguf?")
    if not _REPOSITORY.fullmatch(name_or_path):
        raise NotFoundError(f"no folder {name_or_path!r}, and names on the hub have the form organisation/name")
    inside = f"{subfolder}/" if subfolder else ""
    wanted, unwanted = ([f"{inside}{pattern}" for pattern in patterns] for patterns in (_WANTED, _UNWANTED))
    asked = {"token": token, "cache_dir": cache_dir, "force_download": force}
    folder = _download(name_or_path, revision, offline or _is_offline(), wanted=wanted, unwanted=unwanted, **asked)
    return folder / subfolder


def _about_file(name: str, path: Path) -> str:
    """What to do with a file where a folder is wanted."""
    with path.open("rb") as file:
        is_gguf = file.read(4) == b"GGUF"
    if is_gguf:
        return f"{name} is a GGUF file without its ending: rename it {name}.gguf, and name it so"
    return f"{name} is a file: give the folder of the model"


def is_gguf_name(name: str) -> bool:
    """Whether a name is that of a GGUF file on the hub, `organisation/name:Q4_K_M`, and of nothing on the disk."""
    return _GGUF.fullmatch(name) is not None and not Path(name).exists()


def resolve_gguf(name: str, *, revision: str | None = None, offline: bool = False) -> Path:
    """The GGUF file of a name as llamita and llama.cpp write it, `organisation/name:file.gguf` or `...:Q4_K_M`.

    Of numbered files all are downloaded, and the first is returned.
    Raises what `resolve` does, and UsageError where several files fit.
    """
    found = _GGUF.fullmatch(name)
    assert found is not None
    repository, tag = found.groups()
    wanted = _patterns(tag)
    folder = _download(repository, revision, offline or _is_offline(), wanted=wanted, unwanted=["*mmproj*"])
    paths = [path for path in sorted(folder.rglob("*.gguf")) if _fits(path.relative_to(folder).as_posix(), wanted)]
    firsts = [path for path in paths if not re.search(r"-\d{5}-of-\d{5}$", path.stem) or "-00001-of-" in path.stem]
    if not firsts:
        raise NotFoundError(
            f"{repository} has no GGUF file {tag}: look at its files on the hub's page, and name one as "
            f"{repository}:file.gguf"
        )
    if len(firsts) > 1:
        names = ", ".join(path.name for path in firsts[:5])
        raise UsageError(f"{repository} has several GGUF files {tag}: name one of {names} as {repository}:file.gguf")
    return firsts[0]


def _patterns(tag: str) -> list[str]:
    """Globs of the files that a tag means: itself where it is a file's name, else a quantization in any case."""
    if tag.lower().endswith(".gguf"):
        stem, _, numbered = tag[:-5].partition("-00001-of-")
        return [
            f"{before}{stem}-?????-of-{numbered}{tag[-5:]}" if numbered else f"{before}{tag}" for before in ("", "*/")
        ]
    letters = "".join(f"[{one.lower()}{one.upper()}]" if one.isalpha() else one for one in tag)
    ends = (".gguf", "-?????-of-?????.gguf")
    return [f"{before}{letters}{end}" for before in ("", "*[-._/]") for end in ends]


def _fits(name: str, patterns: Sequence[str]) -> bool:
    return "mmproj" not in name and any(fnmatchcase(name, pattern) for pattern in patterns)


def _is_offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _download(
    repository: str, revision: str | None, offline: bool, *, wanted: list[str], unwanted: list[str], **asked: Any
) -> Path:
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            repository,
            revision=revision,
            local_files_only=offline,
            allow_patterns=wanted,
            ignore_patterns=unwanted,
            **{name: value for name, value in asked.items() if value},
        )
    except Exception as error:  # Any: the hub's HTTP library and that library's errors change between its versions.
        raise _explained(error, repository, revision, offline) from error
    return Path(folder)


def _explained(error: Exception, repository: str, revision: str | None, offline: bool) -> LlamitaError:
    """The hub's error as a LlamitaError of one sentence."""
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        return AccessError(f"{repository} is gated: accept its terms on the hub's page, then set HF_TOKEN")
    if isinstance(error, errors.RevisionNotFoundError):
        return NotFoundError(f"{repository} has no revision {revision!r} on the hub: check its branches and tags")
    if isinstance(error, errors.RepositoryNotFoundError | errors.HFValidationError):
        return NotFoundError(f"no model {repository} on the hub, or a private one: check the name, or set HF_TOKEN")
    if status in (401, 403):
        return AccessError(f"the hub refuses access to {repository}: check HF_TOKEN")
    if isinstance(error, PermissionError):
        return AccessError(f"cannot write the hub's cache ({error}): check its owner, or set HF_HOME")
    if offline:
        return NotFoundError(f"{repository} is not in the local cache, and the hub is switched off: go online once")
    reason = str(error).strip().splitlines()[0][:150] if str(error).strip() else type(error).__name__
    return NotFoundError(f"cannot get {repository} from the hub ({reason}): check the network, or give a local folder")
