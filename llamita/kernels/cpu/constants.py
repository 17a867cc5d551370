"""Constants that kernels and their callers share, for callers that do not import Numba."""

import torch

DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}  # what kernels' names end in
NUMBERS = {dtype: number for number, dtype in enumerate(DTYPES)}  # what they are in `dtype_io`
Q8_BLOCK = 48  # bytes of 32 columns of x in bytes, see `q8_blocks`
KEYS = 64  # keys of a tile, see `prefill_attention`
TILE = 16  # keys that lie transposed in a cache of blocks, see `key_tiles`
QUERIES = 32  # queries of a block, see `prefill_attention`
ROWS = 4  # rows of x that a panel of blocks is multiplied with at once, see `gemm_quantized`
LINES = 256  # rows of x whose sums a kernel's own memory holds
PANEL = 48  # columns of a panel, see `gemm_bf16`
LINES_OF_PART = 512  # lines whose sums it holds at once
