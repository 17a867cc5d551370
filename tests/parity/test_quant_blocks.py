"""Block formats against the gguf package, and the searches against ggml's own, written out one weight at a time."""

from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf.constants import GGML_QUANT_SIZES
from torch import Tensor

from llamita.checkpoint.gguf_save import FILE_TYPES
from llamita.kernels.block_format import BlockFormat
from llamita.kernels.blocks import FORMATS

F = np.float32


def kind(form: BlockFormat) -> gguf.GGMLQuantizationType:
    return gguf.GGMLQuantizationType(form.ggml_type)


def weights(rows: int = 7, columns: int = 768) -> Tensor:
    """Rows of several sizes and shapes: normal, heavy-tailed, of one sign, with ties, constant, zero."""
    normal = torch.randn(rows, columns)
    shapes = [normal * 0.02, normal**3, normal.abs(), -normal.abs() - 1, normal.mul(2).round()]
    return torch.cat([*shapes, torch.full((1, columns), 0.3), torch.full((1, columns), -0.3), torch.zeros(1, columns)])


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_sizes_and_types_are_ggufs(form: BlockFormat) -> None:
    assert (form.block, form.nbytes) == GGML_QUANT_SIZES[kind(form)]
    assert kind(form).name.lower() == form.name


def test_file_types_are_ggufs() -> None:
    for name, number in FILE_TYPES.items():
        assert gguf.LlamaFileType(number).name.lower().removeprefix("mostly_").removeprefix("all_").startswith(name)
    assert {"q4_k", "q5_k"} == FORMATS.keys() - FILE_TYPES.keys()  # mixes of these have numbers


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_dequantize_is_ggufs_bit_for_bit(form: BlockFormat) -> None:
    raw = form.quantize(weights())
    theirs = gguf.quants.dequantize(raw.numpy(), kind(form))
    assert torch.equal(form.dequantize(raw), torch.from_numpy(theirs))


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_dequantize_of_any_bytes_is_ggufs(form: BlockFormat) -> None:
    raw = torch.randint(0, 256, (5, 3 * form.nbytes), dtype=torch.uint8)
    for start in range(0, raw.shape[1], form.nbytes):  # halves that are finite: their highest exponent bit is off
        raw[:, [start + offset for offset in half_ends(form)]] &= 0xBF
    theirs = torch.from_numpy(gguf.quants.dequantize(raw.numpy(), kind(form)))
    assert torch.equal(form.dequantize(raw), theirs)


def half_ends(form: BlockFormat) -> list[int]:
    """Where the high bytes of a block's scales are."""
    two = {name: [1, 3] for name in ("q4_1", "q5_1", "q4_k", "q5_k")}
    return {**two, "q6_k": [209], "mxfp4": [0]}.get(form.name, [1])


@pytest.mark.parametrize("name", ["q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "mxfp4"])
def test_bytes_are_ggufs(name: str) -> None:
    w = weights()
    theirs = gguf.quants.quantize(w.numpy(), kind(FORMATS[name]))
    assert torch.equal(FORMATS[name].quantize(w), torch.from_numpy(theirs))


# ggml's searches in scalars: every operation rounds to fp32, sums run from the first weight to the last.


def in_order(terms: list[F]) -> F:
    total = F(0)
    for term in terms:
        total = F(total + term)
    return total


def nearest(value: F, low: int, high: int) -> int:
    return max(low, min(high, int(np.rint(value))))


def offset_search(x: np.ndarray, levels: int, first: float, tries: int) -> tuple[F, F, list[int]]:
    """Scale, what is taken off, and codes of 32 weights (make_qkx2_quants)."""
    mean = np.sqrt(F(in_order([F(v * v) for v in x]) / F(32)))
    w = [F(mean + abs(v)) for v in x]
    sum_w, sum_x = in_order(w), in_order([F(a * v) for a, v in zip(w, x, strict=True)])
    low, high = min(F(0), x.min()), x.max()
    if low == high:
        return F(0), F(-low), [0] * 32

    def codes(inverse: F, minimum: F) -> list[int]:
        return [nearest(F(inverse * F(v - minimum)), 0, levels) for v in x]

    def error(scale: F, minimum: F, found: list[int]) -> F:
        off = [F(F(F(scale * F(q)) + minimum) - v) for q, v in zip(found, x, strict=True)]
        return in_order([F(a * F(d * d)) for a, d in zip(w, off, strict=True)])

    scale = F(F(1) / F(F(levels) / F(high - low)))
    best_codes = codes(F(F(levels) / F(high - low)), low)
    best = error(scale, low, best_codes)
    for step in range(tries):
        tried = codes(F(F(F(F(first) + F(F(0.1) * F(step))) + F(levels)) / F(high - low)), low)
        weighted = [F(a * F(q)) for a, q in zip(w, tried, strict=True)]
        sum_l = in_order(weighted)
        sum_ll = in_order([F(a * F(q)) for a, q in zip(weighted, tried, strict=True)])
        sum_lx = in_order([F(a * v) for a, v in zip(weighted, x, strict=True)])
        determinant = F(F(sum_w * sum_ll) - F(sum_l * sum_l))
        if determinant <= 0:
            continue
        new_scale = F(F(F(sum_w * sum_lx) - F(sum_x * sum_l)) / determinant)
        new_low = F(F(F(sum_ll * sum_x) - F(sum_l * sum_lx)) / determinant)
        if new_low > 0:
            new_scale, new_low = F(sum_lx / sum_ll), F(0)
        if (new_error := error(new_scale, new_low, tried)) < best:
            best, best_codes, scale, low = new_error, tried, new_scale, new_low
    return scale, F(-low), best_codes


def symmetric_search(x: np.ndarray) -> tuple[F, list[int]]:
    """Scale and codes, 32 being 0, of 16 weights (make_qx_quants)."""
    largest = x[np.abs(x).argmax()]
    if abs(largest) < 1e-15:
        return F(0), [0] * 16
    scale, best, best_codes = F(0), F(0), []
    for step in [0, *range(-9, 0), *range(1, 10)]:
        inverse = F(-F(F(32) + F(F(0.1) * F(step))) / largest)
        codes = [nearest(F(inverse * v), -32, 31) for v in x]
        sum_lx = in_order([F(F(F(v * v) * v) * F(q)) for v, q in zip(x, codes, strict=True)])
        sum_ll = in_order([F(F(F(v * v) * F(q)) * F(q)) for v, q in zip(x, codes, strict=True)])
        if step == 0 or (sum_ll > 0 and F(sum_lx * sum_lx) > F(best * sum_ll)):
            scale = F(sum_lx / sum_ll) if sum_ll else F(0)
            best, best_codes = F(scale * sum_lx), codes
    return scale, [q + 32 for q in best_codes]


def six_bits(factors: list[F]) -> tuple[np.float16, list[int]]:
    largest = max(F(0), *factors)
    inverse = F(F(63) / largest) if largest > 0 else F(0)
    return np.float16(largest / F(63)), [min(63, int(np.rint(F(inverse * f))) & 255) for f in factors]


def offset_block(x: np.ndarray, *, levels: int, first: float, tries: int) -> dict[str, list[Any]]:
    """The parts of a block of Q4_K or Q5_K."""
    found = [offset_search(group, levels, first, tries) for group in x.reshape(8, 32)]
    scale, sub_scale = six_bits([scale for scale, _, _ in found])
    minimum, sub_minimum = six_bits([low for _, low, _ in found])
    codes = []
    for group, (_, _, kept), s, m in zip(x.reshape(8, 32), found, sub_scale, sub_minimum, strict=True):
        d, off = F(F(scale) * F(s)), F(F(minimum) * F(m))
        codes += [nearest(F(F(v + off) / d), 0, levels) for v in group] if d else kept
    return {"codes": codes, "scale": [scale], "minimum": [minimum], "sub_scale": sub_scale, "sub_minimum": sub_minimum}


def symmetric_block(x: np.ndarray) -> dict[str, list[Any]]:
    """The parts of a block of Q6_K."""
    found = [symmetric_search(group) for group in x.reshape(16, 16)]
    scales = np.array([scale for scale, _ in found])
    largest = scales[np.abs(scales).argmax()]
    if abs(largest) < 1e-15:
        return {"codes": [0] * 256, "scale": [np.float16(0)], "sub_scale": [0] * 16}
    inverse = F(F(-128) / largest)
    scale, sub_scale = np.float16(F(1) / inverse), [min(127, int(np.rint(F(inverse * s)))) for s in scales]
    codes = []
    for group, (_, kept), s in zip(x.reshape(16, 16), found, sub_scale, strict=True):
        d = F(F(scale) * F(s))
        codes += [nearest(F(v / d), -32, 31) + 32 for v in group] if d else kept
    return {"codes": codes, "scale": [scale], "sub_scale": sub_scale}


def value_block(x: np.ndarray) -> dict[str, list[Any]]:
    """The parts of a block of IQ4_NL (quantize_row_iq4_nl_impl with ntry 7 and no importance matrix)."""
    values = [F(value) for value in gguf.quants.IQ4_NL.kvalues]
    largest = x[np.abs(x).argmax()]

    def code(number: F) -> int:
        if number <= values[0] or number >= values[-1]:
            return 0 if number <= values[0] else 15
        upper = next(i for i, value in enumerate(values) if number < value)
        return upper - 1 if F(number - values[upper - 1]) < F(values[upper] - number) else upper

    def moments(inverse: F) -> tuple[F, F]:
        numbers = [values[code(F(inverse * v))] for v in x]
        weighted = [F(F(v * v) * q) for v, q in zip(x, numbers, strict=True)]
        return (
            in_order([F(a * v) for a, v in zip(weighted, x, strict=True)]),
            in_order([F(a * q) for a, q in zip(weighted, numbers, strict=True)]),
        )

    scale = F(0)
    if abs(largest) >= 1e-15:
        sum_lx, sum_ll = moments(F(F(1) / F(-largest / values[0])))
        scale = F(sum_lx / sum_ll)
        best = F(scale * sum_lx)
        for step in range(-7, 8):
            sum_lx, sum_ll = moments(F(F(step - 127) / largest))
            if sum_ll > 0 and F(sum_lx * sum_lx) > F(best * sum_ll):
                scale = F(sum_lx / sum_ll)
                best = F(scale * sum_lx)
    inverse = F(F(1) / scale) if scale else F(0)
    return {"codes": [code(F(inverse * v)) for v in x], "scale": [np.float16(scale)]}


def float_block(x: np.ndarray) -> dict[str, list[Any]]:
    """The parts of a block of MXFP4 (quantize_row_mxfp4_ref); scales are exponents, of 2 to the power e - 128."""
    most = np.abs(x).max()
    byte = int(np.floor(F(np.log2(np.float64(most))))) - 2 + 127 if most > 0 else 0
    step = F(2.0 ** (byte - 128))
    codes = []
    for v in x:
        errors = [abs(F(F(F(value) * step) - v)) for value in gguf.quants.MXFP4.kvalues]
        codes.append(errors.index(min(errors)))
    return {"codes": codes, "scale": [byte - 128]}


SEARCHES = {
    "q4_k": lambda x: offset_block(x, levels=15, first=-1.0, tries=21),
    "q5_k": lambda x: offset_block(x, levels=31, first=-0.5, tries=16),
    "q6_k": symmetric_block,
    "iq4_nl": value_block,
    "mxfp4": float_block,
}


@pytest.mark.parametrize("name", SEARCHES)
def test_searches_find_what_ggmls_find(name: str) -> None:
    form = FORMATS[name]
    w = weights(rows=1, columns=2 * form.block)
    w[0, : form.block] = (w[0, : form.block] * 8).round() / 8 + 2.0**-20  # close to where codes meet
    ours = form.codes(form.quantize(w))
    for block, x in enumerate(w.reshape(-1, form.block).numpy()):
        for part, theirs in SEARCHES[name](x).items():
            mine = getattr(ours, part).reshape(w.numel() // form.block, -1)[block]
            assert torch.equal(mine, torch.from_numpy(np.array(theirs)).to(mine.dtype)), (block, part)


@pytest.mark.parametrize("power", [-124, -100, -30, -1, 0, 5, 64, 126])
@pytest.mark.parametrize("ulps", [-2, -1, 0, 1])
def test_mxfp4_scales_near_powers_of_two_and_weights_between_two_floats(power: int, ulps: int) -> None:
    """A logarithm rounds up to the next integer just below it, and of two floats as near the first is taken."""
    most = np.frombuffer(np.int32(F(2.0**power).view(np.int32) + ulps).tobytes(), dtype=F)[0]
    ties = [F(F(between) * F(2.0 ** (power - 3))) for between in (0.5, 1.5, 2.5, 3.5, 5, 7)]
    x = np.array([most, *ties, *[-tie for tie in ties], *[F(0)] * 19], dtype=F)
    form, theirs = FORMATS["mxfp4"], float_block(x)
    ours = form.codes(form.quantize(torch.from_numpy(x)[None]))
    assert ours.scale.tolist() == [theirs["scale"]] and ours.codes.tolist() == [theirs["codes"]]


@pytest.mark.parametrize("name", ["iq4_nl", "mxfp4"])
def test_what_was_quantized_stays_what_it_is(name: str) -> None:
    """gguf writes no IQ4_NL: so its codes are also held to be the nearest, and to be found again."""
    form, w = FORMATS[name], weights()
    codes = form.codes(form.quantize(w))
    scale, _ = codes.factors()
    assert codes.values is not None
    errors = (w.unflatten(1, (-1, 32, 1)) - scale[..., None, None] * codes.values.float()).abs()
    chosen = errors.gather(-1, codes.codes.long().unflatten(1, (-1, 32, 1)))[..., 0]
    # ggml chooses by the scale before it is rounded to fp16.
    assert bool((chosen <= errors.amin(-1) + scale[..., None].abs() * (0.2 if name == "iq4_nl" else 0)).all())
    again = form.codes(form.quantize(codes.dequantize()))
    assert name == "iq4_nl" or torch.equal(again.dequantize(), codes.dequantize())
    assert (again.dequantize() - codes.dequantize()).norm() / w.norm() < 0.02
