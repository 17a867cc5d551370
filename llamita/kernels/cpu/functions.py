"""Functions of numbers as fixed sequences of IEEE operations: the same bits on every machine, unlike a C library's."""

import math

from llamita.kernels.cpu import simd as v
from llamita.kernels.cpu.runtime.program import inline

# pi/2 in two parts, the first of 33 bits, so that its product with a whole number below 2**20 is exact.
HALF_PI, HALF_PI_REST, TWO_OVER_PI = 1.57079632673412561417, 6.07710050650619224932e-11, 0.6366197723675814
# Least-error polynomials on -pi/4 to pi/4, of fdlibm (k_sin.c and k_cos.c).
SINE = (
    1.58969099521155010221e-10, -2.50507602534068634195e-08, 2.75573137070700676789e-06,
    -1.98412698298579493134e-04, 8.33333333332248946124e-03, -1.66666666666666324348e-01,
)  # fmt: skip
COSINE = (
    -1.13596475577881948265e-11, 2.08757232129817482790e-09, -2.75573143513906633035e-07,
    2.48015872894767294178e-05, -1.38888888888741095749e-03, 4.16666666666666019037e-02,
)  # fmt: skip
# 1/n! for n from 7 to 0.
EXPONENTIAL = (1.0 / 5040, 1.0 / 720, 1.0 / 120, 1.0 / 24, 1.0 / 6, 0.5, 1.0, 1.0)


@inline
def exponential(x: v.Vector) -> v.Vector:
    """e to the power of sixteen fp32, to about one unit in the last place; 0 far below, at most e**88."""
    x = v.max(v.broadcast(-104.0), v.min(v.broadcast(88.0), x))
    whole = v.round_to_words(v.mul(x, v.broadcast(1.4426950408889634)))
    turns = v.to_fp32(whole)
    rest = v.fma(turns, v.broadcast(-0.693145751953125), x)  # ln 2 in two parts, the first exact
    rest = v.fma(turns, v.broadcast(-1.428606765330187e-06), rest)
    power = v.broadcast(EXPONENTIAL[0])
    for factor in EXPONENTIAL[1:]:
        power = v.fma(power, rest, v.broadcast(factor))
    return v.scale_by_power_of_two(power, whole)


@inline
def silu_times(gate: v.Vector, up: v.Vector) -> v.Vector:
    """silu(gate) * up."""
    return v.mul(v.div(gate, v.add(v.broadcast(1.0), exponential(v.sub(v.zero_fp32(), gate)))), up)


@inline
def sine_and_cosine(angle: float) -> tuple[float, float]:
    """Both of an angle in radians below a million, in fp64; no `fma`, which a processor may lack."""
    quarter = math.floor(angle * TWO_OVER_PI + 0.5)
    rest = (angle - quarter * HALF_PI) - quarter * HALF_PI_REST
    square = rest * rest
    sine, cosine = SINE[0], COSINE[0]
    for i in range(1, 6):
        sine = sine * square + SINE[i]
        cosine = cosine * square + COSINE[i]
    sine = rest + rest * square * sine
    cosine = 1.0 - 0.5 * square + square * square * cosine
    turn = int(quarter) & 3
    if turn == 0:
        return sine, cosine
    if turn == 1:
        return cosine, -sine
    if turn == 2:
        return -sine, -cosine
    return -cosine, sine
