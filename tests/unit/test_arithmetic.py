"""The bits of the CPU's kernels: the published ones, also as compiled for a lesser processor."""

import os

import pytest

from llamita import arithmetic
from tests.architecture.source import ROOT
from tests.zygote import Zygote, result

X86_64_V3 = "x86-64-v3"


def test_every_format_has_its_digest() -> None:
    assert tuple(arithmetic.expected()) == arithmetic.NAMES


@pytest.mark.parametrize("name", arithmetic.NAMES)
def test_this_machine_gives_the_published_bits(name: str) -> None:
    assert arithmetic.digest(arithmetic.model_of(name)) == arithmetic.expected()[name]


@pytest.mark.skipif(X86_64_V3 not in arithmetic.processors(), reason="this machine does not run x86-64-v3")
def test_kernels_for_a_lesser_processor_give_them_too(zygote: Zygote) -> None:
    """Two formats, as each has kernels to compile; `llamita verify --arithmetic --every-instruction-set` has all."""
    names = ("bf16", "q4_0")
    script = f"from llamita import arithmetic; print(dict(arithmetic.digests({names})))"
    environment = os.environ | {"LLAMITA_CPU": X86_64_V3, "PYTHONPATH": str(ROOT)}
    printed = result(zygote.start(script, environment))
    assert eval(printed) == {name: arithmetic.expected()[name] for name in names}
