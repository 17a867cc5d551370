"""What a block format promises by itself: bytes that come back, errors within a step, and clear refusals."""

import dataclasses
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from llamita.errors import UsageError
from llamita.files.gguf_types import STORAGES, Storage
from llamita.kernels import block_format
from llamita.kernels.bits import round_half_away
from llamita.kernels.block_format import BlockFormat
from llamita.kernels.blocks import FORMATS
from llamita.kernels.quantized_blocks import QuantizedBlocks

# Relative RMS error of normal weights, measured, and a little above.
ERRORS = {
    "q8_0": 0.0055,
    "q4_0": 0.089,
    "q4_1": 0.081,
    "q5_0": 0.044,
    "q5_1": 0.039,
    "q4_k": 0.073,
    "q5_k": 0.037,
    "q6_k": 0.0181,
    "iq4_nl": 0.077,
    "mxfp4": 0.116,
}


def random_bytes(form: BlockFormat, seed: int, rows: int, blocks: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (rows, blocks * form.nbytes), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
@given(seed=st.integers(0, 2**31), rows=st.integers(1, 3), blocks=st.integers(1, 3))
def test_any_bytes_come_back(form: BlockFormat, seed: int, rows: int, blocks: int) -> None:
    raw = random_bytes(form, seed, rows, blocks)
    codes = form.codes(raw)
    assert codes.shape == (rows, blocks * form.block)
    assert codes.bits == 8 or int(codes.codes.max()) < 2**codes.bits
    assert torch.equal(form.raw(codes), raw)


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_codes_are_the_weights(form: BlockFormat) -> None:
    """scale * sub_scale * number - minimum * sub_minimum, written out for every single weight."""
    raw = form.quantize(torch.randn(3, 512))
    codes = form.codes(raw)
    expected = torch.empty(3, 512)
    for row in range(3):
        for column in range(512):

            def at(part: Tensor | None, row: int = row, column: int = column) -> float:
                return 1.0 if part is None else float(part[row, column * part.shape[1] // 512])

            scale, code = at(codes.scale), int(codes.codes[row, column])
            scale = 2.0**scale if codes.scale.dtype == torch.int8 else scale
            step = torch.tensor(scale) * torch.tensor(at(codes.sub_scale))
            weight = step * (float(code) - codes.zero if codes.values is None else float(codes.values[code]))
            if codes.minimum is not None:
                weight = weight - torch.tensor(at(codes.minimum)) * torch.tensor(at(codes.sub_minimum))
            expected[row, column] = weight
    assert torch.equal(form.dequantize(raw), expected)


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_errors_are_as_small_as_the_format_allows(form: BlockFormat, dtype: torch.dtype) -> None:
    w = (0.02 * torch.randn(40, 1024)).to(dtype)
    error = (form.dequantize(form.quantize(w)) - w.float()).norm() / w.float().norm()
    assert error < ERRORS[form.name]


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_numbers_and_sizes_are_those_of_the_container(form: BlockFormat) -> None:
    assert STORAGES[form.name] == Storage(form.ggml_type, form.block, form.nbytes)


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_zeros_stay_zeros(form: BlockFormat) -> None:
    assert torch.equal(form.dequantize(form.quantize(torch.zeros(2, 256))), torch.zeros(2, 256))


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_rows_do_not_depend_on_each_other(form: BlockFormat) -> None:
    w = torch.randn(600, 512)  # more than one chunk
    whole = form.quantize(w)
    assert torch.equal(whole[512:514], form.quantize(w[512:514]))
    assert torch.equal(whole, form.quantize(w.t().contiguous().t()))


@pytest.fixture
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 3], indirect=True)
@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_chunks_share_no_number_and_torch_keeps_its_threads(
    form: BlockFormat, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = nn.Parameter(torch.randn(30, 512))
    whole = form.quantize(weight)
    monkeypatch.setattr(block_format, "CHUNK", 4 * 512)
    seen: set[int] = set()

    def fit(chunk: Tensor) -> QuantizedBlocks:
        seen.add(torch.get_num_threads())
        return form.fit(chunk)

    with torch.inference_mode():
        assert torch.equal(dataclasses.replace(form, fit=fit).quantize(weight), whole)
    assert seen == {1}
    assert torch.get_num_threads() == threads


def test_an_error_in_a_chunk_comes_out_and_torch_keeps_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(chunk: Tensor) -> QuantizedBlocks:
        raise ValueError("no such weights")

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        monkeypatch.setattr(block_format, "CHUNK", 256)
        with pytest.raises(ValueError, match="no such weights"):
            dataclasses.replace(FORMATS["q8_0"], fit=fit).quantize(torch.randn(3, 256))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_rows_that_do_not_fit_are_refused(form: BlockFormat) -> None:
    with pytest.raises(UsageError, match=rf"{form.name} packs rows of a multiple of {form.block} weights"):
        form.quantize(torch.zeros(2, form.block + 16))
    with pytest.raises(UsageError, match=f"multiple of {form.nbytes} bytes"):
        form.codes(torch.zeros(2, form.nbytes + 1, dtype=torch.uint8))


def test_halves_round_away_from_zero() -> None:
    x = torch.tensor([0.5, -0.5, 1.5, 2.5, -2.5, 0.49999997, -0.49999997, 126.5])
    assert round_half_away(x).tolist() == [1, -1, 2, 3, -3, 0, 0, 127]
