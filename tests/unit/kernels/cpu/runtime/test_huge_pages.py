"""Large pages: values and addresses stay, and what cannot be moved is left alone."""

import re
import sys
from typing import Any

import pytest
import torch

from llamita.kernels.cpu.runtime import huge_pages
from llamita.kernels.cpu.runtime.huge_pages import LARGE
from tests.unit.kernels.cpu.runtime.test_library_memory import smaps


class Asked(list):
    """What the system is asked of memory: first address, bytes and advice; it answers with a number."""

    def __init__(self, answer: int) -> None:
        self._answer = answer

    def __call__(self, start: Any, size: Any, advice: int) -> int:
        self.append((start.value, size.value, advice))
        return self._answer


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux alone is asked")
@pytest.mark.parametrize("answer", [0, -1])
def test_whole_pages_of_a_tensor_are_asked_for_and_the_answer_is_told(
    answer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Asked(answer)
    monkeypatch.setattr(huge_pages, "_advise", lambda: asked)
    tensor = torch.zeros(2 * LARGE // 4 + 9, dtype=torch.int32)[7:]  # not at a page's beginning
    assert huge_pages.advise(tensor) is (answer == 0)
    ((start, size, advised),) = asked
    assert advised == 14 and start % 4096 == size % 4096 == 0
    assert 0 <= start - tensor.data_ptr() < 4096
    assert 0 <= tensor.data_ptr() + tensor.nbytes - (start + size) < 4096


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux alone is asked")
@pytest.mark.parametrize(("answer", "made"), [(0, 2), (-1, 0)])
def test_small_tensors_side_by_side_share_large_pages(answer: int, made: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, memory = Asked(answer), torch.zeros(5 * LARGE, dtype=torch.uint8)
    monkeypatch.setattr(huge_pages, "_advise", lambda: asked)
    first = -memory.data_ptr() % LARGE
    sizes = {0: LARGE // 3, LARGE // 3: LARGE // 3, LARGE: LARGE // 2 - 1, 2 * LARGE + 9: LARGE // 2, 3 * LARGE: 0}
    tensors = [memory[first + start : first + start + size] for start, size in sizes.items()]
    assert huge_pages.collapse(tensors) == made
    pages = [memory.data_ptr() + first + page * LARGE for page in (0, 2)]
    assert asked == [(page, LARGE, 25) for page in pages]


def large_kb(tensor: torch.Tensor) -> int:
    """KB in large pages of the mappings that a tensor lies in: memory that was advised before is one of its own."""
    found = re.finditer(r"^(\w+)-(\w+) .*\n(?:[A-Z].*\n)*?AnonHugePages: +(\d+)", smaps(), re.MULTILINE)
    start, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
    return sum(int(one[3]) for one in found if int(one[1], 16) < end and start < int(one[2], 16))


def test_values_and_address_stay_and_the_pages_are_large() -> None:
    tensor = torch.arange(3 * LARGE // 4, dtype=torch.int32)[7:]
    before, address = tensor.clone(), tensor.data_ptr()
    did = huge_pages.collapse([tensor])  # older systems refuse
    assert tensor.data_ptr() == address
    assert torch.equal(tensor, before)
    assert not did or large_kb(tensor) >= 2048


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the memory map of Linux")
def test_memory_that_is_advised_before_it_is_written_is_marked_for_large_pages() -> None:
    tensor = torch.empty(4 * LARGE, dtype=torch.uint8)
    did = huge_pages.advise(tensor)  # systems may refuse
    inside = tensor.data_ptr() + LARGE
    mappings = re.findall(r"^(\w+)-(\w+) .*\n(?:[A-Z]\w+:.*\n)*?VmFlags: (.*)$", smaps(), re.MULTILINE)
    (flags,) = [flags for start, end, flags in mappings if int(start, 16) <= inside < int(end, 16)]
    assert ("hg" in flags.split()) is did
    assert (tensor.fill_(7) == 7).all()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """A system that agrees to everything, and what it was asked."""
    asked = Asked(0)
    monkeypatch.setattr(huge_pages, "_advise", lambda: asked)
    return asked


@pytest.mark.parametrize("tensor", [torch.zeros(9), torch.empty(0), torch.empty(LARGE, device="meta")])
def test_what_is_small_or_elsewhere_is_left_alone(tensor: torch.Tensor, asked: Asked) -> None:
    assert not huge_pages.collapse([tensor])
    assert not huge_pages.advise(tensor)
    assert asked == []


def test_other_systems_are_left_alone(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not huge_pages.collapse([torch.zeros(LARGE)])
    assert not huge_pages.advise(torch.zeros(LARGE))
    assert asked == []
