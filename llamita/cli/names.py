"""The name of a model, as people write it: with its address on the hub, or without its ending."""

import re
from pathlib import Path

from llamita.errors import NotFoundError
from llamita.files.disk import named_path

HOSTS = ("huggingface.co/", "www.huggingface.co/", "hf.co/")
ADDRESSES = ("hf://", *(f"{scheme}{host}" for host in HOSTS for scheme in ("https://", "http://", "")))
WITHIN = re.compile(
    r"([^/]+/[^/?#:]+)(?:/(?:blob|resolve|tree)/([^/]+))?(?:/([^?#]+\.gguf))?/?(?::([\w.-]+))?(?:[?#].*)?"
)
# A text that nobody means as one: org/name, with a digit, as nearly every model's name has one.
ON_HUB = re.compile(r"[A-Za-z][\w-]*/(?=[\w.-]*\d)(?=[\w.-]*[A-Za-z])[\w.-]+(?::[\w.-]+)?")
OLLAMA = re.compile(r"(?:ollama\.com/library/|library/)?[a-z0-9][\w.-]*:[\w.-]+")


def understood(name: str) -> str:
    """A model's name as `load_pretrained` knows it. Raises NotFoundError for a name of Ollama."""
    if not name or _is_there(name):
        return name
    if _is_there(f"{name}.gguf"):
        return f"{name}.gguf"
    if address := next((address for address in ADDRESSES if name.startswith(address)), None):
        return _on_the_hub(name.removeprefix(address), name)
    if name.startswith(("http://", "https://")):
        raise NotFoundError(f"{name} is not on the hub: download it, and give the file or the folder")
    if OLLAMA.fullmatch(name):
        raise NotFoundError(
            f"there is no model {name}: names of Ollama are not known here, write -m org/name as on "
            "huggingface.co, or org/name:Q4_K_M for one of its GGUF files"
        )
    return name


def _on_the_hub(path: str, name: str) -> str:
    """organisation/name, or one of its GGUF files, by its address."""
    found = WITHIN.fullmatch(path)
    if found is None:
        raise NotFoundError(f"{name} is no address of a model: write -m org/name, or -m org/name:file.gguf")
    repository, revision, file, tag = found.groups()
    if revision not in (None, "main"):
        raise NotFoundError(
            f"{name} names the revision {revision}: in Python llamita.load(name, revision=...) takes it"
        )
    wanted = file.rpartition("/")[2] if file else tag
    return f"{repository}:{wanted}" if wanted else repository


def is_model(text: str) -> bool:
    """Whether a text is the name of a model that lies here, rather than a text for one."""
    path = Path(text)
    return (path.suffix.lower() == ".gguf" and _is_there(text)) or _is_there(str(path / "config.json"))


def _is_there(name: str) -> bool:
    try:
        return named_path(name).exists()
    except (OSError, ValueError):  # too long or otherwise what no path can be
        return False
