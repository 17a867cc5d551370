"""A model's folder: a path as it is, or a name on the Hugging Face hub through its cache."""

import os
import re
from pathlib import Path

from llamita.errors import AccessError, LlamitaError, NotFoundError, UsageError
from llamita.files.disk import explained

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*")
_WANTED = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model"]
_UNWANTED = ["*/*.json", "*/*.safetensors"]  # Exports and originals in folders within the repository.


def resolve(name_or_path: str, *, revision: str | None = None, offline: bool = False) -> Path:
    """The folder of a model: a directory as it is, else `organisation/name` on the hub, downloaded once.

    What looks like a path is never sent to the hub; HF_HOME, HF_TOKEN and HF_HUB_OFFLINE are honoured.
    Raises NotFoundError (nothing there, or the network is off), AccessError (gated or private), UsageError (a file).
    """
    path = Path(name_or_path).expanduser()
    with explained("read", path):
        if name_or_path and path.is_dir():
            return path
        if path.is_file():
            raise UsageError(f"{name_or_path} is a file: give the folder of the model")
    if not _REPOSITORY.fullmatch(name_or_path):
        raise NotFoundError(f"no folder {name_or_path!r}, and names on the hub have the form organisation/name")
    return _download(name_or_path, revision, offline or _is_offline())


def _is_offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _download(repository: str, revision: str | None, offline: bool) -> Path:
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            repository,
            revision=revision,
            local_files_only=offline,
            allow_patterns=_WANTED,
            ignore_patterns=_UNWANTED,
        )
    except Exception as error:  # Any: the hub's HTTP library and that library's errors change between its versions.
        raise _told(error, repository, revision, offline) from error
    return Path(folder)


def _told(error: Exception, repository: str, revision: str | None, offline: bool) -> LlamitaError:
    """The hub's error as one of ours, in one sentence."""
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
