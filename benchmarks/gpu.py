"""What a GPU reaches with llamita, in under eight minutes: `python -m benchmarks.gpu` writes benchmarks/h100.md.

First tests/gpu, then the limits of this GPU (memory, bf16 products), each kernel against them and against torch, whole
decode steps with and without CUDA graphs, prompts, and transformers beside them. Weights are random, nothing is
downloaded. Every part looks at the clock before it starts; what there is no time for is left out, by name.
Exit code 6 without a GPU.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks.gpu_kernels import measure_limits, measure_matrices, measure_small
from benchmarks.gpu_models import measure_models
from benchmarks.gpu_page import DEVICE, Bench
from llamita.kernels.cuda import operations

NO_GPU = 6


def run_tests(bench: Bench) -> None:
    """tests/gpu, in a process of their own; their last line becomes a fact."""
    with bench.part("tests/gpu", 60) as has_time:
        if has_time:
            limit = max(60.0, min(200.0, bench.deadline - time.monotonic() - 180))
            command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/gpu"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
            print(done.stdout[-3000:], done.stderr[-1000:])
            bench.facts.append(f"tests/gpu: {(done.stdout.strip().splitlines() or ['no output'])[-1].strip('= ')}")


def main() -> int:
    """Measure and write; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("-o", "--output", type=Path, default=Path("benchmarks/h100.md"), help="the page to write")
    parser.add_argument("--seconds", type=float, default=450.0, help="when to stop (default: 450)")
    parser.add_argument("--no-tests", action="store_true", help="leave out tests/gpu")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks.gpu needs a CUDA device, and this machine has none: run it on one that does", file=sys.stderr)
        return NO_GPU
    bench = Bench(arguments.output, time.monotonic() + arguments.seconds)
    device = torch.cuda.get_device_properties(0)
    versions = f"torch {torch.__version__}, kernels: {operations.feature(torch.device(DEVICE, 0))}"
    bench.facts.append(f"{device.name}, {device.total_memory / 2**30:.0f} GiB, {versions}, {time.strftime('%Y-%m-%d')}")
    print(bench.facts[0])
    if not arguments.no_tests:
        run_tests(bench)
    for measure in (measure_limits, measure_matrices, measure_small, measure_models):
        measure(bench)
    print(f"written: {arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
