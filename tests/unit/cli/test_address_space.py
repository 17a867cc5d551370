"""A process that may have few addresses says so, whatever the library that fails first says of it."""

import resource
import sys
from collections.abc import Iterator

import psutil
import pytest

from llamita.cli import address_space, errors
from llamita.errors import MemoryShortError
from tests.unit.cli.conftest import Run

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems do not keep to the limit")
BEYOND = 4 << 40  # bytes: more than this process has, so that the test goes on


def limit(most: int) -> None:
    """Let this process have no more addresses."""
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))


@pytest.fixture(autouse=True)
def unlimited() -> Iterator[None]:
    """The limit as it was."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    assert psutil.Process().memory_info().vms < BEYOND
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("words", [["serve"], ["batch"], ["generate", "a"], ["replay"], ["verify"]])
def test_r31_too_few_addresses_for_torch_are_one_sentence(run: Run, words: list[str]) -> None:
    limit(600_000_000)  # what is mapped already stays
    code, _, err = run(*words)
    assert (code, err.count("\n")) == (5, 1)
    assert "this process may have 600 MB of addresses (ulimit -v)" in err


def test_a_library_that_finds_no_addresses_is_explained() -> None:
    cause = OSError("libllvmlite.so: failed to map segment from shared object")
    error = OSError("Could not find/load shared object file 'libllvmlite.so'")
    error.__cause__ = cause
    assert "not foreseen" in str(errors.explained(error))  # without a limit it is something else
    limit(BEYOND)
    assert "MB of addresses" in str(errors.explained(error))
    assert isinstance(errors.explained(MemoryError()), MemoryShortError)
    assert "not foreseen" in str(errors.explained(OSError("something else")))


def test_enough_addresses_are_no_error() -> None:
    address_space.check()
    limit(BEYOND)
    address_space.check()
