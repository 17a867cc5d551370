"""Log-probabilities of packed targets."""

import torch

from llamita.data.documents import IGNORED
from llamita.train.tasks.log_probs import log_probs
from llamita.train.tasks.texts import learned_counts, sums
from tests.unit.train.tasks.preferences import make_model, make_pairs, make_rows, summed, whole


def test_they_are_those_of_each_text_alone() -> None:
    model, batch = make_model(), whole(make_rows())
    found = log_probs(model, batch)
    assert torch.equal(found == 0, batch.targets == IGNORED)
    texts = sums(found, batch)[learned_counts(batch) > 0]
    alone = [total for one in make_pairs() for total in summed(model, one)]
    assert torch.allclose(texts.sort().values, torch.stack(alone).sort().values, rtol=1e-9)
