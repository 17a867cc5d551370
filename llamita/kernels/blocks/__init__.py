"""The block formats: every module of this folder defines one, as FORMAT.

To add a file here is enough to read, run, quantize and write models in a new format.
"""

from importlib import import_module
from pkgutil import iter_modules

from llamita.kernels.block_format import BlockFormat

# From the most bits a weight to the fewest, then in the order of ggml's numbers.
FORMATS: dict[str, BlockFormat] = {
    form.name: form
    for form in sorted(
        (import_module(f"{__name__}.{module.name}").FORMAT for module in iter_modules(__path__)),
        key=lambda form: (-form.bits_per_weight, form.ggml_type),
    )
}
