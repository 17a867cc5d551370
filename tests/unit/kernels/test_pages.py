"""Large pages: values and addresses stay, and what cannot be moved is left alone."""

import sys

import pytest
import torch

from llamita.kernels import pages


def test_values_and_address_stay() -> None:
    tensor = torch.arange(3 * pages.LARGE // 4, dtype=torch.int32)[7:]  # not at a page's beginning
    before, address = tensor.clone(), tensor.data_ptr()
    pages.enlarge(tensor)
    assert tensor.data_ptr() == address
    assert torch.equal(tensor, before)


def test_memory_may_be_asked_for_in_large_pages_before_it_is_written() -> None:
    tensor = torch.empty(2 * pages.LARGE, dtype=torch.uint8)
    pages.make_large(tensor)  # systems may refuse
    assert (tensor.fill_(7) == 7).all()


@pytest.mark.parametrize("tensor", [torch.zeros(9), torch.empty(0), torch.empty(pages.LARGE, device="meta")])
def test_what_is_small_or_elsewhere_is_left_alone(tensor: torch.Tensor) -> None:
    assert not pages.enlarge(tensor)
    assert not pages.make_large(tensor)


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not pages.enlarge(torch.zeros(pages.LARGE))
    assert not pages.make_large(torch.zeros(pages.LARGE))
