"""One server of cria for the tests that leave it as they found it."""

from collections.abc import Iterator

import pytest

import llamita
from llamita.llm import LLM
from tests.server.serving import Running, serving


@pytest.fixture(scope="session")
def cria() -> LLM:
    """The embedded model."""
    return llamita.load(device="cpu")


@pytest.fixture(scope="session")
def server(cria: LLM) -> Iterator[Running]:
    """A server without keys."""
    with serving(cria) as running:
        yield running
