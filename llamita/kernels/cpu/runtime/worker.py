"""The loop of each thread over a program: claim one chunk after another and call the kernels."""

from llamita.kernels.cpu import float_mode, simd
from llamita.kernels.cpu.runtime.program import ARGUMENTS, BYTES, CHUNKS, CLAIMED, DONE, FROM, KERNEL, ROW, kernel

SPINS = 4096  # looks at a counter before the core is offered to others
AHEAD = 1 << 17  # bytes of a matrix that a thread asks for while it waits


@kernel
def work(table: int) -> None:
    """Row 0 holds the number of rows, the address of the function that yields the core, and the parts of a row.

    Each thread first claims the chunks of its own part of a row, in order, so that it reads memory in order; then it
    claims chunks that are left in other parts. While it waits, it prefetches what it will read next.
    """
    mode = float_mode.flush_denormals()
    rows, pause, parts = simd.read(table), simd.read(table + 8), simd.read(table + 16)
    mine = simd.fetch_add(table + 8 * CLAIMED)
    for i in range(1, rows + 1):
        row = table + i * 8 * ROW
        size, chunks = simd.read(row + 8 * BYTES), simd.read(row + 8 * CHUNKS)
        ahead = simd.read(row + 8 * ARGUMENTS) + chunks * (mine % parts) // parts * size
        end_of_ahead = ahead + min(AHEAD, chunks // parts * size)
        for before in range(simd.read(row + 8 * FROM), i):
            other = table + before * 8 * ROW
            needed, spins = simd.read(other + 8 * CHUNKS), 0
            while simd.load_acquire(other + 8 * DONE) < needed:
                if ahead < end_of_ahead:
                    simd.prefetch(ahead, 64)
                    ahead += 64
                spins += 1
                if spins == SPINS:
                    simd.yield_core(pause)
                    spins = 0
        code = simd.read(row + 8 * KERNEL)
        for turn in range(parts):
            part = (mine + turn) % parts
            first, end = chunks * part // parts, chunks * (part + 1) // parts
            counter = row + 8 * (CLAIMED + 8 * part)
            chunk = first + simd.fetch_add(counter)
            while chunk < end:
                simd.call(code, row + 8 * ARGUMENTS, chunk)
                simd.fetch_add(row + 8 * DONE)
                chunk = first + simd.fetch_add(counter)
    float_mode.restore(mode)
