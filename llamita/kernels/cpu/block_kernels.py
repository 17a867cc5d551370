"""The kernels of the block formats: each family, for each format of the table."""

from collections.abc import Callable

from llamita.kernels.block_format import BlockFormat
from llamita.kernels.blocks import FORMATS
from llamita.kernels.cpu.dequantize_blocks import dequantize
from llamita.kernels.cpu.gemv_quantized import Compute, embed, gated, linear
from llamita.kernels.cpu.repack_blocks import pack
from llamita.kernels.cpu.runtime.program import Kernel, kernel

FAMILIES: dict[str, Callable[[BlockFormat], Compute]] = {
    "linear": linear,
    "gated": gated,
    "embed": embed,
    "pack": pack,
    "dequantize": dequantize,
}
KERNELS: dict[str, Kernel] = {
    f"{family}_{form.name}": kernel(make(form), f"{family}_{form.name}", __name__)
    for family, make in FAMILIES.items()
    for form in FORMATS.values()
}
