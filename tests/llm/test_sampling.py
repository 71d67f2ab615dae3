"""What may be chosen, and how often."""

import pytest
import torch

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.llm.sampling import Sampling

SHARES = (0.5, 0.25, 0.15, 0.1)


@pytest.mark.parametrize(
    ("knobs", "expected"),
    [
        ({}, SHARES),
        ({"top_k": 2}, (2 / 3, 1 / 3, 0, 0)),
        ({"top_k": 9}, SHARES),
        ({"top_p": 0.5}, (1, 0, 0, 0)),
        ({"top_p": 0.51}, (2 / 3, 1 / 3, 0, 0)),
        ({"top_p": 0.8}, (5 / 9, 2.5 / 9, 1.5 / 9, 0)),
        ({"top_p": 1.0}, SHARES),
        ({"top_k": 2, "top_p": 0.6}, (1, 0, 0, 0)),  # of the two that are left the first has 2/3
        ({"temperature": 0.0}, (1, 0, 0, 0)),
    ],
)
def test_what_may_be_chosen_and_how_often(knobs, expected):
    torch.manual_seed(0)
    order = [2, 0, 3, 1]
    logits = torch.tensor(SHARES).log()[torch.tensor(order)].expand(8000, 4)
    found = torch.bincount(Sampling(**knobs).choose(logits), minlength=4) / 8000
    for place, share in zip(order, found, strict=True):
        assert abs(float(share) - expected[place]) < 0.02
        assert expected[place] > 0 or share == 0


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"temperature": -1.0}, "temperature must be at least 0"),
        ({"temperature": None}, "temperature=None"),
        ({"top_k": 0}, "top_k must be at least 1"),
        ({"top_p": 0.0}, "top_p=0 leaves no token"),
        ({"top_p": 1.5}, "top_p must be between 0 and 1"),
        ({"stop": ["a", ""]}, "stop must be texts"),
    ],
)
def test_sampling_refuses_what_means_nothing(knobs, message):
    with pytest.raises(ConfigurationError, match=message):
        Sampling(**knobs)
    assert Sampling(stop="\n").stop == ("\n",)
