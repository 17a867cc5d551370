"""The likelihood of a text is the product of its tokens' probabilities."""

import math

import pytest
import torch

from llamita.model.likelihood import nats, perplexity


def test_the_likelihood_is_the_product_of_the_probabilities() -> None:
    probabilities = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7], [0.3, 0.3, 0.4]])
    found = nats(3 + probabilities.log(), [0, 1, 2])  # the logits after the last token predict nothing here
    assert found == pytest.approx(-math.log(0.25 * 0.7), rel=1e-6)
    assert perplexity(found, 2) == pytest.approx((0.25 * 0.7) ** -0.5, rel=1e-6)
