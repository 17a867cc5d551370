"""Rotary position embedding: angles of positions, and rotated heads. Must equal `reference` bit for bit."""

import numpy as np

from llamita.kernels.cpu import dtype_io as e
from llamita.kernels.cpu import simd as v
from llamita.kernels.cpu.arguments import Angles, offsets
from llamita.kernels.cpu.functions import sine_and_cosine
from llamita.kernels.cpu.runtime.program import inline, kernel

AT = offsets(Angles)


@kernel
def angles(at: int, chunk: int) -> None:
    """Cosines and sines of one row of positions."""
    half, factor = v.read(at + AT.half), v.read_fp32(at + AT.factor)
    position = np.float32(v.read(v.read(at + AT.positions) + 8 * chunk))
    for i in range(half):
        # The angle is rounded to fp32, as the model rounds it.
        angle = np.float32(position * v.read_fp32(v.read(at + AT.frequencies) + 4 * i))
        sine, cosine = sine_and_cosine(float(angle))
        v.write_fp32(v.read(at + AT.cosines) + 4 * (half * chunk + i), np.float32(cosine) * factor)
        v.write_fp32(v.read(at + AT.sines) + 4 * (half * chunk + i), np.float32(sine) * factor)


@inline
def rotate(x: int, cosines: int, sines: int, half: int, factor: float, dtype: int, to: int, start: int) -> None:
    """Rotate a head fp32 (2 * half,) at x, its first half against its second, times factor.

    It goes to elements `start` on of `to`, of a dtype. Both halves are read before either is written, so `to` may be x
    where the dtype is fp32.
    """
    i, scale = 0, v.broadcast(factor)
    while i + 16 <= half:
        cosine, sine = v.mul(scale, v.load(cosines + 4 * i)), v.mul(scale, v.load(sines + 4 * i))
        first, second = v.load(x + 4 * i), v.load(x + 4 * (half + i))
        e.put_wide(dtype, to, start + i, v.sub(v.mul(first, cosine), v.mul(second, sine)))
        e.put_wide(dtype, to, start + half + i, v.add(v.mul(second, cosine), v.mul(first, sine)))
        i += 16
    while i < half:
        cosine, sine = factor * v.read_fp32(cosines + 4 * i), factor * v.read_fp32(sines + 4 * i)
        first, second = v.read_fp32(x + 4 * i), v.read_fp32(x + 4 * (half + i))
        e.put(dtype, to, start + i, first * cosine - second * sine)
        e.put(dtype, to, start + half + i, second * cosine + first * sine)
        i += 1
