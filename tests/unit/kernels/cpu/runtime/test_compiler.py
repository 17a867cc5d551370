"""No kernel calls Numba or Python: a process that has neither loaded runs what another compiled."""

import importlib
import os
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import torch

from llamita.checkpoint.gguf_save import save_gguf
from llamita.config import LlamaConfig
from llamita.kernels import cpu
from llamita.kernels.blocks import FORMATS
from llamita.kernels.cpu import simd as v
from llamita.kernels.cpu.constants import DTYPES
from llamita.kernels.cpu.runtime.program import Kernel, kernel
from llamita.model.llama import LlamaForCausalLM
from llamita.quant.surgery import quantize
from tests.architecture.source import ROOT
from tests.unit.kernels.cpu.launch import launch
from tests.zygote import Zygote, result

ELSEWHERE = {**os.environ, "PYTHONPATH": str(ROOT)}


@kernel
def choose(at: int, chunk: int) -> None:
    """Write one of four numbers, and a second each time that a range has a number: LLVM proves neither's soundness."""
    numbers = (11, 22, 33, 44)
    v.write(v.read(at + 16), numbers[v.read(at)])
    for i in range(0, 3, v.read(at + 8)):
        v.write(v.read(at + 16) + 8, i)


def every_kernel() -> Iterator[Kernel]:
    """The kernels of all modules, from their tables too."""
    for module in pkgutil.walk_packages(cpu.__path__, f"{cpu.__name__}."):
        names = vars(importlib.import_module(module.name))
        for one in (*names.values(), *names.get("KERNELS", {}).values()):
            if isinstance(one, Kernel) and one._function is not None and one._module == module.name:
                yield one


def test_code_that_may_err_is_run_without_numba() -> None:
    out = torch.zeros(2, dtype=torch.int64)
    for place, step, expected in ((0, 1, [11, 2]), (3, 2, [44, 2]), (-1, 5, [44, 0])):
        launch(choose, place, step, out)
        assert out.tolist() == expected
    assert choose._code().calls == ()


def test_an_error_ends_the_process(zygote: Zygote) -> None:
    """Nobody could read it: a kernel has no result."""
    script = """
import os, resource, torch, warnings
from tests.unit.kernels.cpu.launch import launch
from tests.unit.kernels.cpu.runtime.test_compiler import choose
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
warnings.simplefilter("ignore")  # of libraries' threads, which do not run
assert choose.address
for arguments in ((3, 1), (4, 1), (0, 0)):
    if (pid := os.fork()) == 0:
        launch(choose, *arguments, torch.zeros(2, dtype=torch.int64))
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) < 0)
"""
    assert result(zygote.start(script, ELSEWHERE)).split() == ["False", "True", "True"]


def test_a_process_without_numba_finds_every_kernel(zygote: Zygote) -> None:
    names = {f"{one._module.partition('kernels.cpu.')[2]}.{one._name}": one for one in every_kernel()}
    assert len(names) > 5 * len(FORMATS) + 9 * len(DTYPES)
    for one in names.values():
        one._code()  # compiled once for all tests
    script = f"""
import sys
from llamita.kernels.cpu.runtime import code_cache
print([name for name in {sorted(names)} if code_cache.find(name) is None], "numba" in sys.modules)
"""
    assert result(zygote.start(script, ELSEWHERE)) == "[] False"


LOAD = """
import sys, torch
from pathlib import Path
from llamita.checkpoint.gguf import load_gguf
from llamita.plans.cpu import fuse
ids = torch.arange(40)[None]
for path in sorted(Path({folder!r}).iterdir()):
    model = fuse(load_gguf(path)[0])
    with torch.inference_mode():
        read = model(ids, use_cache=True)
        step = model(ids[:, :1], past_key_values=read.past_key_values)
    matrix = model.model.layers[0].mlp.down_proj.matrix
    assert matrix.format_name == path.stem
    print(path.stem, *(x.double().sum().item() for x in (read.logits, step.logits, matrix.dequantize(torch.bfloat16))))
print("compiled" if "numba" in sys.modules else "found")
"""


def test_a_second_process_reads_files_of_every_format_and_compiles_nothing(tmp_path: Path, zygote: Zygote) -> None:
    config = LlamaConfig(
        vocab_size=90, hidden_size=256, intermediate_size=512, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, tie_word_embeddings=True,
    )  # fmt: skip
    for name in FORMATS:
        model = LlamaForCausalLM(config)
        quantize(model, {"*": name})
        save_gguf(model, None, tmp_path / f"{name}.gguf")
    script = LOAD.format(folder=str(tmp_path))
    *first, _ = result(zygote.start(script, ELSEWHERE)).splitlines()
    assert result(zygote.start(script, ELSEWHERE)).splitlines() == [*first, "found"]
    assert len(first) == len(FORMATS)
