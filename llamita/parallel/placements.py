"""How tensor parallelism cuts each part of a model: tables of placements, for training and for writing.

For training, Megatron's cut (arXiv:1909.08053): q, k, v, gate and up by columns, o and down by rows, the embedding, the
head and the loss by vocabulary; between them each process keeps a part of the sequence (arXiv:2205.05198). For writing,
all matrices by columns, so that no sum is cut and every number is computed as one process computes it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch.distributed.tensor import Placement, Replicate, Shard

from llamita.model.parts import NORMS

WHOLE, ROWS, TOKENS, FEATURES = Replicate(), Shard(0), Shard(1), Shard(-1)  # of weights (out, in), of states (B, T, D)


@dataclass(frozen=True)
class Part:
    """How one part of a model is sharded: its weight, and the layouts of what it reads and gives.

    comes: how an input arrives that is a plain tensor. reads: what the part computes on, gives: what it returns.
    is_local: whether the output becomes a plain tensor, of the process's own part.
    """

    weight: Placement
    comes: Placement = WHOLE
    reads: Placement = WHOLE
    gives: Placement = WHOLE
    is_local: bool = False

    def of(self, name: str) -> Placement:
        """How a parameter of this name is sharded: a bias, and those of adapters, with the sides of the weight."""
        outputs = ROWS if self.weight == ROWS else WHOLE
        inputs = WHOLE if self.weight == ROWS else self.weight
        return {"bias": outputs, "A": inputs, "B": outputs, "magnitude": outputs}.get(name, self.weight)


COLUMNS = Part(ROWS, gives=FEATURES, is_local=True)
_BY_ROWS = Part(Shard(1), comes=FEATURES, reads=FEATURES, gives=TOKENS)
_NORM = Part(WHOLE, comes=TOKENS, reads=TOKENS)
_GATHERED = Part(ROWS, comes=FEATURES, is_local=True)

# The parts around the layers, in a causal LM.
AROUND = {"embedding": "model.embed_tokens", "last_norm": "model.norm", "head": "lm_head"}
# Each part, by the names of `llamita.model.parts` and of `AROUND`.
TRAINING: dict[str, Part] = {
    "embedding": Part(ROWS, gives=TOKENS),
    **dict.fromkeys(NORMS, _NORM),
    **dict.fromkeys(("q", "k", "v", "gate", "up"), COLUMNS),
    **dict.fromkeys(("o", "down"), _BY_ROWS),
    "last_norm": Part(WHOLE, comes=TOKENS, reads=TOKENS, is_local=True),
    "head": Part(ROWS, gives=FEATURES),
}
# Of weights in blocks: all by columns, which cuts no block, and no sum of a forward pass.
BLOCKS: Mapping[str, Part] = TRAINING | dict.fromkeys(("o", "down"), Part(ROWS, comes=FEATURES, gives=TOKENS))
WRITING: Mapping[str, Part] = {
    "embedding": Part(ROWS, is_local=True),
    **dict.fromkeys(("q", "k", "v", "gate", "up"), COLUMNS),
    **dict.fromkeys(("o", "down"), _GATHERED),
    "head": Part(ROWS, is_local=True),
}
