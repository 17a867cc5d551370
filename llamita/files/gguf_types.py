"""What a GGUF file may hold: kinds of metadata values, and ways in which tensors are stored."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

MAGIC = b"GGUF"
VERSIONS = (2, 3)  # they differ in nothing but big-endian files, which are not read here
ALIGNMENT = 32
MAX_NAME = 64  # bytes, the format's limit for the name of a tensor

# Kinds of values in the order of their numbers in the file, with struct's letter for those of a fixed size.
KINDS: Mapping[str, str] = {
    "uint8": "B",
    "int8": "b",
    "uint16": "H",
    "int16": "h",
    "uint32": "I",
    "int32": "i",
    "float32": "f",
    "bool": "?",
    "string": "",
    "array": "",
    "uint64": "Q",
    "int64": "q",
    "float64": "d",
}
NUMBERS: Mapping[str, int] = {kind: number for number, kind in enumerate(KINDS)}

Scalar = int | float | bool | str


@dataclass(frozen=True)
class Field:
    """A metadata value and its kind; a list is an array of that kind."""

    kind: str
    value: Scalar | list[Scalar]


@dataclass(frozen=True)
class Storage:
    """How weights lie in a file: `block` of them in `nbytes` bytes; `dtype` where torch has the very same numbers."""

    number: int
    block: int
    nbytes: int
    dtype: torch.dtype | None = None

    def size(self, shape: tuple[int, ...]) -> int:
        """The bytes of a tensor whose rows, its last axis, are whole blocks."""
        count = 1
        for length in shape:
            count *= length
        return count // self.block * self.nbytes


# GGML's names in lower case. The numbers that are missing are not found in files, or no more.
STORAGES: Mapping[str, Storage] = {
    "f32": Storage(0, 1, 4, torch.float32),
    "f16": Storage(1, 1, 2, torch.float16),
    "q4_0": Storage(2, 32, 18),
    "q4_1": Storage(3, 32, 20),
    "q5_0": Storage(6, 32, 22),
    "q5_1": Storage(7, 32, 24),
    "q8_0": Storage(8, 32, 34),
    "q2_k": Storage(10, 256, 84),
    "q3_k": Storage(11, 256, 110),
    "q4_k": Storage(12, 256, 144),
    "q5_k": Storage(13, 256, 176),
    "q6_k": Storage(14, 256, 210),
    "q8_k": Storage(15, 256, 292),
    "iq2_xxs": Storage(16, 256, 66),
    "iq2_xs": Storage(17, 256, 74),
    "iq3_xxs": Storage(18, 256, 98),
    "iq1_s": Storage(19, 256, 50),
    "iq4_nl": Storage(20, 32, 18),
    "iq3_s": Storage(21, 256, 110),
    "iq2_s": Storage(22, 256, 82),
    "iq4_xs": Storage(23, 256, 136),
    "i8": Storage(24, 1, 1, torch.int8),
    "i16": Storage(25, 1, 2, torch.int16),
    "i32": Storage(26, 1, 4, torch.int32),
    "i64": Storage(27, 1, 8, torch.int64),
    "f64": Storage(28, 1, 8, torch.float64),
    "iq1_m": Storage(29, 256, 56),
    "bf16": Storage(30, 1, 2, torch.bfloat16),
    "tq1_0": Storage(34, 256, 54),
    "tq2_0": Storage(35, 256, 66),
    "mxfp4": Storage(39, 32, 17),
    "nvfp4": Storage(40, 64, 36),
    "q1_0": Storage(41, 128, 18),
}
# Those of plain numbers that weights are computed with.
PLAIN: Mapping[str, torch.dtype] = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
