"""Kernels on a machine with nothing but the least: no dot product of bytes, no long registers, no half floats."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from llamita.kernels.cpu import simd as v
from llamita.kernels.cpu.runtime.program import kernel
from tests.unit.kernels.cpu.launch import launch

# Not test_products.py: such a machine is given none of those (test_the_machine_decides).
FILES = ("test_dense.py", "test_elementwise.py", "test_gemv_quantized.py", "test_repack.py", "test_attend.py")
AVX2 = {"+avx2", "+bmi2", "+f16c", "+fma"}


dot4_anywhere = v.operation(v.Words(v.Words, v.Words, v.Words), v._dot4_anywhere)


@kernel
def both_dots(at: int, chunk: int) -> None:
    """total, codes and x of sixteen lanes; the machine's result, then the other."""
    total, codes, x = v.load_words(v.read(at)), v.load_words(v.read(at + 8)), v.load_words(v.read(at + 16))
    for i in range(16):
        v.write_int32(v.read(at + 24) + 4 * i, v.extract_word(v.dot_u8s8(total, codes, x), i))
        v.write_int32(v.read(at + 32) + 4 * i, v.extract_word(dot4_anywhere(total, codes, x), i))


def test_the_dot_product_of_bytes_is_the_same_everywhere() -> None:
    for _ in range(20):
        total = torch.randint(-1_000_000, 1_000_000, (16,), dtype=torch.int32)
        codes, x = torch.randint(256, (64,), dtype=torch.uint8), torch.randint(-128, 128, (64,), dtype=torch.int8)
        codes[:4], x[:4], codes[4:8], x[4:8] = 255, 127, 255, -128
        here, anywhere = torch.empty(2, 16, dtype=torch.int32)
        launch(both_dots, total, codes, x, here, anywhere)
        expected = total + (codes.int() * x.int()).view(16, 4).sum(-1)
        assert torch.equal(here, expected.int()) and torch.equal(anywhere, expected.int())


def run_tests(which: str, *files: Path, **environment: str) -> None:
    """Run the tests of these files whose names fit, in a process of their own whose environment says more."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", "-k", which]
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    done = subprocess.run(
        [*command, *map(str, files)], env=kept | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]


@pytest.mark.skipif("x86_64" not in v.target()[0], reason="names a processor of that kind")
def test_the_kernels_on_the_least_of_machines() -> None:
    """Sixteen bytes a register, no dot product, no multiply-add in one, no half floats."""
    which = (
        "any_size and not q5_0 and not q5_k and not q4_1 or widths and 16 or many_rows and not alone"
        " or (norm or gate or number) and not float32 and not q4_0 and not q4_1 and not q5 and not q6_k"
    )
    files = [Path(__file__).with_name(file) for file in FILES]
    run_tests(which, *files, NUMBA_CPU_NAME="x86-64", NUMBA_CPU_FEATURES="")


@pytest.mark.skipif(not AVX2.issubset(v.target()[2].split(",")), reason="names a processor of that kind")
def test_attention_of_many_tokens_on_a_common_machine() -> None:
    """Thirty-two bytes a register, and blocks of queries of which the last has one or one too many."""
    file = Path(__file__).parents[1] / "plans" / "cpu" / "test_prefill.py"
    run_tests("test_lengths and float32 or test_heads_in_fp32", file, LLAMITA_CPU="x86-64-v3")
