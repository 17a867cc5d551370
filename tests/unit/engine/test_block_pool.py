"""Blocks are shared by those whose texts begin alike, and taken again from the least recently used."""

import pytest

from llamita.engine.block_pool import BlockPool, chained, common_prefix, root_digest


def stored(pool: BlockPool, text: list[int], salt: str = "") -> list[int]:
    """Blocks that hold a text, written and released."""
    ids, digest = pool.allocate(pool.blocks_for(len(text))), root_digest(salt)
    for number, block in enumerate(ids):
        tokens = tuple(text[number * pool.block_size : (number + 1) * pool.block_size])
        digest = pool.store(block, digest, tokens)
    pool.release(ids)
    return ids


def test_a_text_is_found_by_its_beginning() -> None:
    pool = BlockPool(8, 4)
    ids = stored(pool, list(range(10)))
    found = pool.match(list(range(12)), limit=11)
    assert (found.block_ids, found.tail, found.tail_tokens) == (ids[:2], ids[2], 2)
    found = pool.match([0, 1, 2, 3, 4, 5, 99, 7, 8], limit=8)
    assert (found.block_ids, found.tail, found.tail_tokens) == (ids[:1], ids[1], 2)
    assert found.digest == chained(root_digest(""), range(4))
    assert pool.match(list(range(8)), limit=7).tail_tokens == 3  # at least one token stays to be computed
    assert pool.match(list(range(8)), salt="other", limit=7).block_ids == []
    assert BlockPool(8, 4, enable_prefix_caching=False).match(list(range(8)), limit=7).block_ids == []


def test_the_least_recently_used_block_is_taken_first_and_the_end_of_a_text_before_its_beginning() -> None:
    pool = BlockPool(4, 2)
    first, second = stored(pool, [1, 2, 3, 4]), stored(pool, [5, 6])
    assert pool.num_cached == 3
    assert pool.allocate(1) == [3]  # stores nothing yet
    assert pool.allocate(1) == [first[1]]
    assert pool.match([1, 2, 3, 4], limit=4).block_ids == first[:1]
    pool.hold(first[:1])
    assert pool.allocate(1) == second
    assert pool.num_free == 0
    with pytest.raises(AssertionError, match="1 blocks asked of 0"):
        pool.allocate(1)


def test_blocks_are_counted() -> None:
    pool = BlockPool(3, 2)
    ids = pool.allocate(2)
    pool.hold(ids[:1])
    assert pool.num_free_without([ids[0], 2]) == 0
    pool.check_integrity([ids, ids[:1]])
    with pytest.raises(AssertionError):
        pool.check_integrity([ids])
    pool.release(ids)
    pool.release(ids[:1])
    with pytest.raises(AssertionError, match="released twice"):
        pool.release(ids[:1])
    pool.check_integrity([])


def test_ts13_a_digest_that_meets_other_tokens_is_no_match() -> None:
    pool = BlockPool(4, 2)
    (block, *_) = stored(pool, [1, 2])
    pool.blocks[block].tokens = (1, 3)  # as if sha256 had collided
    assert pool.match([1, 2, 3], limit=2).block_ids == []


def test_clear_forgets_all_that_is_cached() -> None:
    pool = BlockPool(4, 2)
    stored(pool, [1, 2, 3])
    pool.clear()
    assert pool.match([1, 2, 3], limit=2).block_ids == []
    assert pool.num_cached == 0
    pool.check_integrity([])


def test_common_prefix() -> None:
    assert [common_prefix([1, 2], other) for other in ([], [1], [1, 2, 3], [2], [1, 3])] == [0, 1, 2, 0, 1]
