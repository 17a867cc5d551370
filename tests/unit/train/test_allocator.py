"""Freed memory is kept for the next tensor, after the first step of an optimizer."""

import os
import sys

import pytest

from tests.architecture.source import ROOT
from tests.zygote import Zygote, result

CODE = """
import resource
import torch
from llamita.train.allocator import keep_freed_memory_later

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        torch.ones(48 << 20, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
faults()
without = faults()
keep_freed_memory_later()
keep_freed_memory_later()  # of another run in the same process
weight = torch.nn.Parameter(torch.ones(3))
weight.grad = torch.ones(3)
optimizer = torch.optim.AdamW([weight])
faults()
before = faults()
optimizer.step()
optimizer.step()
faults()
print(without, before, min(faults() for _ in range(4)))  # a small object may lie in the freed tensor's place once
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_a_freed_tensor_s_pages_are_used_again_after_the_first_step(zygote: Zygote) -> None:
    printed = result(zygote.start(CODE, os.environ | {"PYTHONPATH": str(ROOT)}))
    without, before, kept = map(int, printed.split())
    assert before > without / 4 > kept
