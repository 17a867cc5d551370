"""The corpus as a source of batches for the training loop of llamita."""

from functools import cached_property
from hashlib import sha256

import torch
from tokenizers import Tokenizer

from llamita.data.loader import Batch, take
from llamita.data.packing import Rows
from recipes.cria.corpus import Corpus
from recipes.cria.recipe import CriaRecipe

SAMPLED = 16  # rows of each mix by which the corpus is told from another


def rows_of(corpus: Corpus, numbers: range, tokenizer: Tokenizer, *, length: int) -> Rows:
    """Some rows of a corpus."""
    rows = [corpus.row(number, tokenizer, length=length) for number in numbers]
    inputs, targets, documents = (torch.tensor(column, dtype=torch.int32) for column in zip(*rows, strict=True))
    return Rows(inputs, targets, documents)


class CorpusSource:
    """Rows written when they are read; a row depends on the recipe and its number, which is the position, alone."""

    def __init__(self, recipe: CriaRecipe, tokenizer: Tokenizer, *, position: int = 0) -> None:
        self.position = position
        self._recipe, self._tokenizer = recipe, tokenizer

    @property
    def fingerprint(self) -> str:
        """The sha256 of some rows of both mixes, which do not depend on how many there are."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        mixes = (self._recipe.mix_at(0), self._recipe.mix_at(len(self)))
        found = [self._rows(mix, range(SAMPLED)).fingerprint() for mix in mixes]
        return sha256("".join(found).encode()).hexdigest()

    def __len__(self) -> int:
        return self._recipe.rows

    def next(self, count: int) -> Batch:
        """The next `count` rows; the position moves on."""
        first, self.position = self.position, self.position + count
        mix = self._recipe.mix_at(first)  # of a whole step
        return take(self._rows(mix, range(first, self.position)), torch.arange(count))

    def _rows(self, mix: dict[str, float], numbers: range) -> Rows:
        corpus = Corpus(mix, seed=self._recipe.train.seed)
        return rows_of(corpus, numbers, self._tokenizer, length=self._recipe.train.length)
