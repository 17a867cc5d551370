"""Programs: order, threads, and what each kernel gives whoever runs it."""

import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from threading import Barrier
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from llamita.kernels.cpu import simd as v
from llamita.kernels.cpu.constants import Q8_BLOCK
from llamita.kernels.cpu.linear import add_plain, add_quantized, add_round
from llamita.kernels.cpu.packed_layout import pack
from llamita.kernels.cpu.runtime import program as programs
from llamita.kernels.cpu.runtime import threads
from llamita.kernels.cpu.runtime.program import Program, kernel
from tests.unit.kernels.cpu.launch import quantized


class AddUp(NamedTuple):
    """To each of the numbers to (chunks,), the sum of the numbers (size,)."""

    numbers: Tensor | int
    to: Tensor | int
    size: int


@kernel
def add_up(at: int, chunk: int) -> None:
    """See AddUp."""
    total = 0.0
    for i in range(v.read(at + 16)):
        total += v.read_fp32(v.read(at) + 4 * i)
    v.write_fp32(v.read(at + 8) + 4 * chunk, v.read_fp32(v.read(at + 8) + 4 * chunk) + total)


@pytest.fixture(params=["openmp", "python"])
def launcher(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of getting threads."""
    if request.param == "python":
        monkeypatch.setattr(programs, "launcher", lambda: threads._python)
    return request.param


def chain(length: int, width: int) -> tuple[Program, list[Tensor]]:
    """A program in which every call reads all that the one before it wrote."""
    program, rooms = Program(), [torch.ones(width)] + [torch.zeros(width) for _ in range(length)]
    for before, after in pairwise(rooms):
        program.add(add_up, AddUp(before, after, width), chunks=width)
    return program, rooms


def mixture(seed: int) -> tuple[Program, list[Tensor]]:
    """Plain and quantized products beside each other, then one that adds to the first's result."""
    torch.manual_seed(seed)
    x, weight, bias, last = torch.randn(3, 256), torch.randn(300, 256), torch.randn(300), torch.randn(300, 7)
    packed, program = pack(quantized("q4_k", 333, 256), "q4_k"), Program()
    q8_blocks, outs = torch.zeros(3 * 8 * Q8_BLOCK, dtype=torch.uint8), [torch.zeros(3, n) for n in (300, 333)]
    add_round(program, x, q8_blocks=q8_blocks)
    add_plain(program, weight, x, outs[0], bias)
    add_quantized(program, packed, q8_blocks, outs[1], None, 3, concurrent=True)
    add_plain(program, last, torch.randn(3, 7), outs[0], None, adds=True)
    return program, outs


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_a_call_waits_for_the_ones_before_it(launcher: str, threads: int) -> None:
    program, rooms = chain(6, 8)
    program.run(threads)
    assert [room.tolist() for room in rooms] == [[8.0**i] * 8 for i in range(7)]


@pytest.mark.parametrize("streams", [1, 4096, 1 << 40])
def test_waiting_threads_ask_for_memory_that_need_not_be_there(streams: int) -> None:
    program, ones = Program(), torch.ones(64)
    rooms = [ones, torch.zeros(64), torch.zeros(64)]
    for before, after in pairwise(rooms):
        program.add(add_up, AddUp(before, after, 64), chunks=64, streams=streams)
    program.run(4)
    assert rooms[1].tolist() == [64.0] * 64 and rooms[2].tolist() == [4096.0] * 64


def test_every_chunk_is_made_once(launcher: str) -> None:
    program, rooms = chain(1, 3001)
    for runs in range(1, 4):
        program.run(3)
        assert rooms[1].unique().tolist() == [3001.0 * runs]


def test_threads_change_no_bit(launcher: str) -> None:
    results = []
    for count in (1, 2, 3, 7):
        program, outs = mixture(5)
        program.run(count)
        results.append(torch.cat(outs, dim=1))
    assert all(torch.equal(result, results[0]) for result in results)
    assert bool(results[0].isfinite().all())


def test_as_many_threads_as_torch_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(programs, "launcher", lambda: lambda *arguments: asked.append(arguments[2]))
    program, _ = chain(1, 2)
    program.run()
    program.run(2)
    assert asked == [3, 2]


def test_two_python_threads_run_programs_at_once(launcher: str) -> None:
    alone, expected = mixture(1)
    alone.run(1)
    together = Barrier(2)

    def work(_: int) -> bool:
        program, outs = mixture(1) if _ == 0 else (other, others)
        together.wait()
        for _ in range(30):
            for out in outs:
                out.zero_()
            program.run(2)
            if not all(map(torch.equal, outs, expected)):
                return False
        return True

    other, others = mixture(1)
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(work, range(2))) == [True, True]


def test_two_python_threads_ask_for_one_kernel() -> None:
    fresh = [kernel(add_up._function) for _ in range(3)]  # pyright: ignore[reportArgumentType]
    with ThreadPoolExecutor(4) as pool:
        for one in fresh:
            assert len(set(pool.map(lambda k: k.address, [one] * 4))) == 1


def test_beside_begins_with_the_call_before() -> None:
    program, _ = chain(2, 4)
    waits = [row[programs.FROM] for row in program._rows[1:]]
    program.add(add_up, AddUp(0, 0, 0), concurrent=True)
    program.add(add_up, AddUp(0, 0, 0))
    assert [row[programs.FROM] for row in program._rows[1:]] == [*waits, 3, 2]
    assert waits == [1, 1]


def test_change_reaches_a_program_that_has_run() -> None:
    program, rooms = chain(1, 4)
    program.run()
    other = torch.zeros(4)
    program.change(1, to=other)
    program.run()
    assert other.tolist() == rooms[1].tolist() == [4.0] * 4
    program.add(add_up, AddUp(other, rooms[1], 4))
    program.run()
    assert other.tolist() == [8.0] * 4 and rooms[1].tolist() == [36.0, 4.0, 4.0, 4.0]
    program.change(1, chunks=2, to=rooms[1])
    program.change(2, chunks=0)
    program.run()
    assert other.tolist() == [8.0] * 4 and rooms[1].tolist() == [40.0, 8.0, 4.0, 4.0]


def test_too_many_arguments_are_our_mistake() -> None:
    with pytest.raises(AssertionError):
        Program().add(add_up, range(programs._MOST_ARGUMENTS + 1))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems' torch may have no such runtime")
def test_torch_brings_its_threads() -> None:
    threads.launcher.cache_clear()
    assert threads.launcher() is not threads._python


def test_a_torch_without_openmp_leaves_python_threads(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setattr(torch, "__file__", f"{tmp_path}/__init__.py")
    threads.launcher.cache_clear()
    try:
        assert threads.launcher() is threads._python
    finally:
        threads.launcher.cache_clear()
