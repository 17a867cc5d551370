"""Blocks of the paged cache: who holds them, which are free, and which prefix of a text each one stores."""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

from llamita.generation.common_prefix import common_prefix

MOST_COMPARED = 32  # blocks after one prefix that are compared token by token for a common beginning


@dataclass
class Block:
    """One block: the requests that hold it, and what it stores, if that can be found again.

    digest: of all tokens up to the block's last. parent: the digest up to the block before. tokens: its own, fewer
    than a block has slots where a text ended in it.
    """

    ref_count: int = 0
    digest: bytes | None = None
    parent: bytes = b""
    tokens: tuple[int, ...] = ()


@dataclass(frozen=True)
class PrefixMatch:
    """The cached beginning of a text.

    block_ids: full blocks in order. tail: a block whose first `tail_tokens` tokens come next in the text; they can be
    copied, as the rest of the block differs. digest: of the tokens in the full blocks. other: the token that the cache
    has after the match instead of the text's own, None where it has nothing there.
    """

    block_ids: list[int]
    digest: bytes
    tail: int | None = None
    tail_tokens: int = 0
    other: int | None = None

    @property
    def held(self) -> list[int]:
        """The blocks to hold until the tail is copied."""
        return self.block_ids if self.tail is None else [*self.block_ids, self.tail]

    def without_tail(self) -> "PrefixMatch":
        """The full blocks alone."""
        return PrefixMatch(self.block_ids, self.digest, other=self.other)


@dataclass
class BlockPool:
    """Blocks with reference counts, a hash-chained prefix cache over them, and eviction of the least recently used.

    A digest is sha256 over the parent's digest and the block's tokens; the first parent is the digest of a salt, so
    texts of different salts share nothing.
    """

    num_blocks: int
    block_size: int
    enable_prefix_caching: bool = True
    blocks: list[Block] = field(init=False)

    def __post_init__(self) -> None:
        self.blocks = [Block() for _ in range(self.num_blocks)]
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(self.num_blocks))  # next to be taken first
        self._by_digest: dict[bytes, int] = {}
        self._after: dict[bytes, dict[int, None]] = {}  # blocks by their parent, in the order in which they were stored

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds; some of them are cached."""
        return len(self._free)

    @property
    def num_cached(self) -> int:
        """Blocks that a prefix can find."""
        return len(self._by_digest)

    def blocks_for(self, tokens: int) -> int:
        """How many blocks this number of tokens fills."""
        return -(-tokens // self.block_size)

    def tokens_of(self, match: PrefixMatch) -> int:
        """How many tokens a match has."""
        return len(match.block_ids) * self.block_size + match.tail_tokens

    def match(self, token_ids: Sequence[int], *, salt: str = "", limit: int) -> PrefixMatch:
        """The cached part of the first `limit` tokens of a text."""
        digest, found = root_digest(salt), list[int]()
        if not self.enable_prefix_caching:
            return PrefixMatch(found, digest)
        for start in range(0, limit - self.block_size + 1, self.block_size):
            tokens = tuple(token_ids[start : start + self.block_size])
            after = chained(digest, tokens)
            block_id = self._by_digest.get(after)
            if block_id is None or self.blocks[block_id].tokens != tokens:
                break
            found.append(block_id)
            digest = after
        start = len(found) * self.block_size
        best, longest = None, -1
        rest = token_ids[start : min(limit, start + self.block_size)]
        for block_id in reversed([*islice(reversed(self._after.get(digest, {})), MOST_COMPARED)]):
            length = common_prefix(self.blocks[block_id].tokens, rest)
            if length > longest:
                best, longest = block_id, length
        if best is None:
            return PrefixMatch(found, digest)
        tokens = self.blocks[best].tokens
        other = tokens[longest] if longest < len(tokens) and start + longest < limit else None
        return PrefixMatch(found, digest, best if longest else None, max(longest, 0), other)

    def hold(self, block_ids: Sequence[int]) -> None:
        """Let one more request hold these blocks."""
        for block_id in block_ids:
            self.blocks[block_id].ref_count += 1
            self._free.pop(block_id, None)

    def num_free_without(self, block_ids: Sequence[int]) -> int:
        """How many blocks would be free if these were held."""
        return len(self._free) - sum(block_id in self._free for block_id in set(block_ids))

    def allocate(self, count: int) -> list[int]:
        """New blocks, held once; what they stored is forgotten. The caller has checked `num_free`."""
        assert count <= len(self._free), f"{count} blocks asked of {len(self._free)} free ones"
        taken = [self._free.popitem(last=False)[0] for _ in range(count)]
        for block_id in taken:
            self._forget(block_id)
            self.blocks[block_id].ref_count = 1
        return taken

    def release(self, block_ids: Sequence[int]) -> None:
        """Let one request hold these blocks no longer. The last of them are reused first."""
        for block_id in reversed(block_ids):
            block = self.blocks[block_id]
            assert block.ref_count > 0, f"block {block_id} is released twice"
            block.ref_count -= 1
            if block.ref_count == 0:
                self._free[block_id] = None
                if block.digest is None:
                    self._free.move_to_end(block_id, last=False)

    def store(self, block_id: int, parent: bytes, tokens: tuple[int, ...]) -> bytes:
        """Note what a block stores, once it is written; returns the digest up to its end.

        A block that stores what another one does is not noted: the first stays the one that is found.
        """
        digest = chained(parent, tokens)
        if self.enable_prefix_caching and digest not in self._by_digest and self.blocks[block_id].digest is None:
            block = self.blocks[block_id]
            block.digest, block.parent, block.tokens = digest, parent, tokens
            self._by_digest[digest] = block_id
            self._after.setdefault(parent, {})[block_id] = None
        return digest

    def _forget(self, block_id: int) -> None:
        block = self.blocks[block_id]
        if block.digest is None:
            return
        del self._by_digest[block.digest]
        siblings = self._after[block.parent]
        del siblings[block_id]
        if not siblings:
            del self._after[block.parent]
        block.digest, block.parent, block.tokens = None, b"", ()

    def clear(self) -> None:
        """Forget every prefix, for a change of weights."""
        for block_id in list(self._by_digest.values()):
            self._forget(block_id)

    def check_integrity(self, held: Sequence[Sequence[int]]) -> None:
        """Raise AssertionError unless the counts are those of the block tables held, and every index agrees."""
        counts = [0] * self.num_blocks
        for table in held:
            assert len(set(table)) == len(table), f"a table holds a block twice: {table}"
            for block_id in table:
                counts[block_id] += 1
        for block_id, block in enumerate(self.blocks):
            assert block.ref_count == counts[block_id], f"block {block_id}: {block.ref_count} != {counts[block_id]}"
            assert (block_id in self._free) == (block.ref_count == 0), f"block {block_id} is free and held, or neither"
            if block.digest is not None:
                assert self._by_digest[block.digest] == block_id
                assert block_id in self._after[block.parent]
                assert chained(block.parent, block.tokens) == block.digest
        assert sum(block.digest is not None for block in self.blocks) == len(self._by_digest)
        assert sum(map(len, self._after.values())) == len(self._by_digest)


def root_digest(salt: str) -> bytes:
    """The parent of a text's first block."""
    return hashlib.sha256(salt.encode()).digest()


def chained(parent: bytes, tokens: Sequence[int]) -> bytes:
    """The digest of a text that goes on from its parent by these tokens."""
    return hashlib.sha256(parent + array("q", tokens).tobytes()).digest()
