"""Sixteen rows of sixteen numbers to sixteen columns, in registers."""

from llamita.kernels.cpu.pieces import Builder, Value, places

_LANES = 16
_QUARTERS = range(0, _LANES, 4)
# Lanes of two vectors, one after the other, that a shuffle takes: single ones, two and four next to each other.
_ONES = {half: [at + half + i for at in _QUARTERS for i in (0, _LANES, 1, _LANES + 1)] for half in (0, 2)}
_TWOS = {half: [start + at + half + i for at in _QUARTERS for start in (0, _LANES) for i in (0, 1)] for half in (0, 2)}
_FOURS = {
    half: [start + at + i for start in (0, _LANES) for at in (half, half + 8) for i in range(4)] for half in (0, 4)
}


def transposed(b: Builder, rows: list[Value]) -> list[Value]:
    """By shuffles inside of sixteen bytes, then of these: other ways need registers for places, and copies."""
    fours = [_columns_of_four(b, rows[i : i + 4]) for i in _QUARTERS]
    found: list[Value] = [None] * _LANES
    for column in range(4):
        x, y, z, w = (four[column] for four in fours)
        for half in (0, 4):
            early, late = _shuffled(b, x, y, _FOURS[half]), _shuffled(b, z, w, _FOURS[half])
            for rest, number in ((0, half // 4), (4, half // 4 + 2)):
                found[4 * number + column] = _shuffled(b, early, late, _FOURS[rest])
    return found


def _columns_of_four(b: Builder, rows: list[Value]) -> list[Value]:
    """Of four rows: column 0 of each quarter, column 1 and so on."""
    (a, c), (d, f) = ([_shuffled(b, rows[j], rows[j + 1], _ONES[half]) for half in (0, 2)] for j in (0, 2))
    return [_shuffled(b, x, y, _TWOS[half]) for x, y in ((a, d), (c, f)) for half in (0, 2)]


def _shuffled(b: Builder, x: Value, y: Value, lanes: list[int]) -> Value:
    return b.shuffle_vector(x, y, places(lanes))
