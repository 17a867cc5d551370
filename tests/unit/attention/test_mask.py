"""The mask against a plain loop, and the cases in which it says that order alone decides."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from llamita.attention.mask import Mask

CPU = torch.device("cpu")
PADDING = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0]]).bool()
DOCUMENTS = torch.tensor([[0, 0, 1, 1, 1, 2, 2], [5, 5, 5, 5, 7, 7, 7]])


def loop(queries: int, keys: int, given: dict[str, Any]) -> torch.Tensor:
    visible = torch.zeros(2, 1, queries, keys, dtype=torch.bool)
    offset, first = int(given.get("offset", 0)), given.get("first", 0)
    for row, query, key in product(range(2), range(queries), range(keys)):
        stands, slot = query + offset, key + first
        sees = slot <= stands
        if (window := given.get("window")) is not None:
            sees = sees and slot > stands - window
        if (padding := given.get("padding")) is not None:
            sees = sees and bool(padding[row, key])
        if (documents := given.get("documents")) is not None:
            sees = sees and bool(documents[0][row, query] == documents[1][row, key])
        visible[row, 0, query, key] = sees
    return visible


CASES: list[tuple[int, int, dict[str, Any]]] = [
    (7, 7, {}),
    (3, 7, {"offset": 4}),
    (3, 7, {"offset": torch.tensor(2)}),
    (1, 7, {"offset": 6}),
    (7, 7, {"window": 3}),
    (2, 5, {"offset": 8, "first": 5, "window": 4}),
    (7, 7, {"padding": PADDING}),
    (3, 7, {"padding": PADDING, "offset": 4, "window": 3}),
    (7, 7, {"documents": (DOCUMENTS, DOCUMENTS)}),
    (7, 7, {"documents": (DOCUMENTS, DOCUMENTS), "padding": PADDING, "window": 2}),
]


@pytest.mark.parametrize(("queries", "keys", "given"), CASES)
def test_visible_equals_a_loop(queries: int, keys: int, given: dict[str, Any]) -> None:
    mask = Mask(queries, keys, device=CPU, **given)
    expected = loop(queries, keys, given)
    assert torch.equal(mask.visible.expand(2, -1, -1, -1), expected)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        additive = mask.additive(dtype).expand(2, -1, -1, -1)
        assert additive.dtype == dtype
        assert (additive[expected] == 0).all()
        assert (additive[~expected] == torch.finfo(dtype).min).all()


def test_a_row_without_anything_sees_everything_where_kernels_need_it() -> None:
    mask = Mask(7, 7, device=CPU, padding=PADDING)
    empty = ~mask.visible.any(-1)
    assert empty.sum() == 2  # the two left pads of the first row
    assert torch.equal(mask.visible_somewhere[~empty], mask.visible[~empty])
    assert mask.visible_somewhere[empty].all()


@pytest.mark.parametrize(
    ("queries", "keys", "given", "expected"),
    [
        (7, 7, {}, True),
        (1, 7, {"offset": 6}, True),
        (1, 7, {"offset": 6, "padding": torch.ones(2, 7).bool()}, True),
        (7, 7, {"padding": torch.ones(2, 7).bool()}, True),
        (7, 7, {"window": 8}, True),
        (7, 7, {"window": 7}, False),
        (3, 7, {"offset": 4}, False),
        (7, 7, {"padding": PADDING}, False),
        (7, 7, {"documents": (DOCUMENTS, DOCUMENTS)}, False),
        (1, 7, {"offset": torch.tensor(3)}, False),
        (7, 7, {"given": torch.ones(1, 1, 7, 7).tril().bool()}, False),
    ],
)
def test_plain_causal(queries: int, keys: int, given: dict[str, Any], expected: bool) -> None:
    assert Mask(queries, keys, device=CPU, **given).is_plain_causal is expected


FIRST = torch.arange(8)[None] < 3  # three tokens in eight slots


@pytest.mark.parametrize(
    ("offset", "device", "padding", "expected"),
    [
        (0, "cpu", None, True),
        (0, "cpu", FIRST, True),
        (0, "cpu", FIRST & (torch.arange(8) > 0), False),
        (0, "cpu", torch.ones(1, 8, dtype=torch.bool), False),
        (3, "cpu", None, False),
        (0, "meta", None, False),  # as on CUDA: a graph that is recorded may not depend on the length
    ],
)
def test_the_beginning_of_a_static_cache(offset: int, device: str, padding: Tensor | None, expected: bool) -> None:
    start = torch.tensor(offset, device=device)
    assert Mask(3, 8, device=torch.device(device), offset=start, padding=padding).is_plain_causal == expected
    assert not Mask(1, 8, device=torch.device(device), offset=start, padding=padding).is_plain_causal


def test_a_given_bool_mask_stays_and_an_additive_one_loses_its_infinities() -> None:
    given = torch.rand(2, 3, 4, 5) > 0.5
    assert Mask(4, 5, device=CPU, given=given).visible is given
    bias = torch.randn(2, 1, 4, 5).masked_fill(torch.rand(2, 1, 4, 5) > 0.5, -torch.inf)
    mask = Mask(4, 5, device=CPU, given=bias)
    assert torch.equal(mask.visible, bias > -torch.inf)
    for dtype in (torch.float32, torch.float16):
        assert mask.additive(dtype).isfinite().all()
        assert torch.equal(mask.additive(dtype)[bias > -torch.inf], bias[bias > -torch.inf].to(dtype))
