"""GGML's block formats: a table from their names to how weights become bytes and back."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from llamita.errors import UsageError
from llamita.kernels.codes import Codes
from llamita.quant import blocks32, blocks256

CHUNK = 2**18  # weights quantized at a time: the searches' working tensors of 1 MB stay in the cache


@dataclass(frozen=True, kw_only=True)
class BlockFormat:
    """One format: `nbytes` bytes for every `block` weights of a row, as GGUF files hold them under `ggml_type`."""

    name: str
    ggml_type: int
    block: int
    nbytes: int
    fit: Callable[[Tensor], Codes]
    read: Callable[[Tensor], Codes]
    write: Callable[[Codes], Tensor]

    @property
    def bits_per_weight(self) -> float:
        """Bits that a weight takes, scales included."""
        return 8 * self.nbytes / self.block

    def quantize(self, weight: Tensor) -> Tensor:
        """Weights (N, K) of any float dtype as bytes uint8 (N, K / block * nbytes), those that llama.cpp writes.

        Raises UsageError where K is no multiple of `block`.
        """
        if weight.ndim != 2 or weight.shape[1] % self.block:
            raise UsageError(
                f"{self.name} packs rows of a multiple of {self.block} weights, not {tuple(weight.shape)}: "
                "choose another format for this layer"
            )
        rows = max(1, CHUNK // weight.shape[1])
        with torch.inference_mode(mode=False):  # or no other thread might write to it
            raw = weight.new_empty(len(weight), weight.shape[1] // self.block * self.nbytes, dtype=torch.uint8)
        _each(self._quantize, weight.detach().contiguous().split(rows), raw.split(rows))
        return raw

    def _quantize(self, weight: Tensor, raw: Tensor) -> None:
        raw.copy_(self.write(self.fit(weight)))

    def dequantize(self, raw: Tensor) -> Tensor:
        """Bytes (N, bytes) as weights fp32 (N, K)."""
        return self.codes(raw).dequantize()

    def codes(self, raw: Tensor) -> Codes:
        """Bytes uint8 (N, bytes) taken apart."""
        self.check(raw)
        return self.read(raw)

    def check(self, raw: Tensor) -> None:
        """Raise UsageError for a tensor that cannot be bytes of this format, uint8 (N, bytes)."""
        if raw.dtype != torch.uint8 or raw.ndim != 2 or raw.shape[1] % self.nbytes:
            raise UsageError(
                f"{self.name} needs rows of a multiple of {self.nbytes} bytes, not {raw.dtype} {tuple(raw.shape)}: "
                "these are bytes of another format"
            )

    def raw(self, codes: Codes) -> Tensor:
        """The inverse of `codes`."""
        return self.write(codes)


def _each(quantize: Callable[[Tensor, Tensor], None], chunks: Sequence[Tensor], results: Sequence[Tensor]) -> None:
    """Quantize each chunk into its place, as many at once as torch has threads, each with one of them.

    The searches are thousands of small steps, and threads that share a step wait for the slowest after each.
    """
    threads = torch.get_num_threads()
    if threads == 1 or len(chunks) == 1 or chunks[0].device.type != "cpu":
        for chunk, result in zip(chunks, results, strict=True):
            quantize(chunk, result)
        return
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            list(pool.map(quantize, chunks, results))  # raises what one of them has raised
    finally:
        torch.set_num_threads(threads)  # it is also what threads yet to come begin with


def _of_32(name: str, ggml_type: int, nbytes: int) -> BlockFormat:
    fit, read, write = (getattr(blocks32, f"{verb}_{name}") for verb in ("fit", "read", "write"))
    return BlockFormat(
        name=name, ggml_type=ggml_type, block=blocks32.SIZE, nbytes=nbytes, fit=fit, read=read, write=write
    )


def _of_256(name: str, ggml_type: int, nbytes: int) -> BlockFormat:
    fit, read, write = (getattr(blocks256, f"{verb}_{name}") for verb in ("fit", "read", "write"))
    return BlockFormat(
        name=name, ggml_type=ggml_type, block=blocks256.SIZE, nbytes=nbytes, fit=fit, read=read, write=write
    )


FORMATS: dict[str, BlockFormat] = {
    each.name: each
    for each in (
        _of_32("q8_0", 8, 34),
        _of_32("q4_0", 2, 18),
        _of_32("q4_1", 3, 20),
        _of_32("q5_0", 6, 22),
        _of_32("q5_1", 7, 24),
        _of_256("q4_k", 12, 144),
        _of_256("q5_k", 13, 176),
        _of_256("q6_k", 14, 210),
    )
}
