"""API keys: known by their digests, compared without a hint by time."""

import hashlib
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from llamita.errors import UsageError
from llamita.files.disk import explained, named_path

MOST_KEY_BYTES = 1024
MOST_FILE_BYTES = 1_000_000


@dataclass(frozen=True)
class Keys:
    """The sha256 digests of the keys there are."""

    digests: tuple[bytes, ...] = ()

    @classmethod
    def of(cls, keys: Iterable[str]) -> "Keys":
        """From the keys themselves. Raises UsageError for one that no header can carry."""
        digests = []
        for key in keys:
            if not key or not key.isascii() or not key.isprintable() or " " in key or len(key) > MOST_KEY_BYTES:
                raise UsageError(
                    f"an API key has 1 to {MOST_KEY_BYTES} visible ASCII characters and no space: "
                    "take another, such as the output of openssl rand -hex 24"
                )
            digests.append(digest(key.encode()))
        return cls(tuple(digests))

    def __bool__(self) -> bool:
        return bool(self.digests)

    def __add__(self, other: "Keys") -> "Keys":
        return Keys(self.digests + other.digests)

    def id_of(self, given: bytes) -> str | None:
        """A short name for the key that was given; None if it is none of these. Compares with all, without a halt."""
        own = digest(given)
        is_known = False
        for known in self.digests:
            is_known |= secrets.compare_digest(own, known)
        return own.hex()[:16] if is_known else None


NO_KEYS = Keys()


def digest(key: bytes) -> bytes:
    """The sha256 digest of a key."""
    return hashlib.sha256(key).digest()


def read_keys(path: str | Path) -> list[str]:
    """The keys of a file, one a line; lines that begin with # are comments. Raises UsageError where there is none.

    Raises what the file system refuses, too.
    """
    path = named_path(path)
    with explained("read", path), path.open("rb") as file:
        content = file.read(MOST_FILE_BYTES + 1)
    if len(content) > MOST_FILE_BYTES:
        raise UsageError(f"the key file {path} has more than {MOST_FILE_BYTES} bytes: it is to have one key a line")
    try:
        lines = [line.strip() for line in content.decode("utf-8-sig").splitlines()]
    except UnicodeDecodeError:
        raise UsageError(f"the key file {path} is not UTF-8 text: it is to have one key a line") from None
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise UsageError(f"the key file {path} has no key: write one a line")
    return keys
