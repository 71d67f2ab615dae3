"""Bonuses for what was seldom seen: by hand, in clusters, across ranks."""

import itertools

import gymnasium as gym
import numpy as np
import pytest
import torch
from llm_tiny import tiny_model
from reward_tools import NUMBER, TEXT, ready, step

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.core.types import EnvSpec
from rl_lightning.rewards import CountBonus
from rl_lightning.rewards import count_bonus as module
from rl_lightning.rewards.places import Clusters, exact_places
from rl_lightning.rewards.texts import TextEmbedder


def walk(reward, *path, start=True):
    """What is paid on the way through states, in one environment."""
    paid = []
    for t, (a, b) in enumerate(itertools.pairwise(path)):
        paid.append(reward(step([a], [b], started=[start and t == 0]))[0])
    return paid


def test_lifetime_counts_by_hand():
    reward = ready(CountBonus(NUMBER))
    assert walk(reward, 0, 1, 0, 1) == pytest.approx([1, 2**-0.5, 2**-0.5])
    # The first observation of the next episode is a visit, too: the third of 0.
    assert walk(reward, 0, 0, 2) == pytest.approx([4**-0.5, 1])


def test_episodic_counts_by_hand():
    first = ready(CountBonus(NUMBER, episodic="first", lifetime="none"))
    assert walk(first, 0, 1, 0, 1, 2) == [1, 0, 0, 1]
    assert walk(first, 1, 0, 1) == [1, 0]
    root = ready(CountBonus(NUMBER, episodic="root", lifetime="none"))
    assert walk(root, 0, 1, 0, 1) == pytest.approx([1, 2**-0.5, 2**-0.5])
    assert walk(root, 0, 1, 1) == pytest.approx([1, 2**-0.5])


def test_their_product():
    reward = ready(CountBonus(NUMBER, episodic="first", lifetime="root"))
    assert walk(reward, 0, 1, 0, 1) == pytest.approx([1, 0, 0])
    assert walk(reward, 0, 1, 1) == pytest.approx([3**-0.5, 0])
    reward = ready(CountBonus(NUMBER, episodic="root", lifetime="root"))
    assert walk(reward, 0, 1, 1) == pytest.approx([1, 0.5])


def test_environments_count_in_their_order_and_resets_not_at_all():
    reward = ready(CountBonus(NUMBER), 3)
    got = reward(step([0, 0, 0], [5, 5, 5], valid=[1, 0, 1]))
    assert got == pytest.approx([1, 0, 2**-0.5])
    episodic = ready(CountBonus(NUMBER, episodic="first", lifetime="none"), 2)
    assert list(episodic(step([0, 0], [5, 5]))) == [1, 1]


def test_exactly_equal_observations_are_one_place():
    space = gym.spaces.Dict(
        {
            "image": gym.spaces.Box(0, 255, (2, 2), np.uint8),
            "text": gym.spaces.Text(9),
            "pair": gym.spaces.Tuple((gym.spaces.Discrete(3), gym.spaces.MultiBinary(2))),
        }
    )
    image = np.zeros((3, 2, 2), np.uint8)
    image[2] = 1
    pair = (np.zeros(3, np.int64), np.zeros((3, 2), np.int8))
    obs = {"image": image, "text": ("a", "a", "a"), "pair": pair}
    one, two, three = exact_places(space, obs, [0, 1, 2])
    assert one == two != three
    texts = exact_places(gym.spaces.Text(9), ("ab", "a", "ab"), [0, 1, 2])
    assert texts[0] == texts[2] != texts[1]
    spec = EnvSpec(space, gym.spaces.Discrete(2), "Parts-v0")
    by_text = ready(CountBonus(spec, entry="text"), 3)
    assert by_text(step(obs, obs)) == pytest.approx([1, 2**-0.5, 3**-0.5])
    with pytest.raises(ConfigurationError, match=r"no entry 'x' .* it has 'image', 'pair', 'text'"):
        CountBonus(spec, entry="x")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"episodic": "none", "lifetime": "none"}, "counts nothing with"),
        ({"episodic": "twice"}, r"episodic must be one of \('none', 'first', 'root'\)"),
        ({"lifetime": "first"}, "lifetime must be one of"),
        ({"key": "near"}, "key must be one of"),
        ({"threshold": 2.0}, "threshold must be between -1 and 1"),
        ({"clusters": 0}, "clusters must be at least 1"),
    ],
)
def test_wrong_arguments_are_told(arguments, told):
    with pytest.raises(ConfigurationError, match=told):
        CountBonus(TEXT, **arguments)


def test_what_hardly_ever_repeats_is_refused():
    spec = EnvSpec(gym.spaces.Box(-1, 1, (2,)), gym.spaces.Discrete(2), "Vectors-v0")
    with pytest.raises(ConfigurationError, match=r"cannot count Box.* of Vectors-v0.*or use RND"):
        CountBonus(spec)


def vectors(*angles):
    """Of length 1, at these angles."""
    return torch.stack([torch.tensor([np.cos(a), np.sin(a)], dtype=torch.float32) for a in angles])


def test_clusters_by_hand():
    clusters = Clusters(2, threshold=np.cos(0.2), most=3)
    a, near, b = clusters.find(["a", "near a", "b"], vectors(0.0, 0.1, 1.0))
    assert a == near != b
    assert clusters.find(["a"], vectors(0.0)) == [a]
    # 0.15 is within reach of 0.0 and of 0.3: the nearest it is.
    (c,) = clusters.find(["c"], vectors(0.3))
    assert clusters.find(["x", "y"], vectors(0.14, 0.16)) == [a, c]
    # There are three, and no more.
    assert clusters.find(["far"], vectors(2.0)) == [b]
    assert len(clusters.places) == 3
    other = Clusters(2, threshold=np.cos(0.2), most=3)
    other.load_state_dict(clusters.state_dict())
    assert other.find(["x", "far"], vectors(0.14, 2.0)) == [a, b]


def test_a_text_belongs_to_the_place_it_has_founded_whatever_is_rounded():
    clusters = Clusters(2, threshold=1.0, most=9)
    texts, where = ["a", "b"], vectors(0.123, 1.234) * 0.9999
    assert clusters.find(texts, where) == clusters.find(texts, where)
    assert len(clusters.places) == 2


def test_ranks_agree_on_clusters():
    ranks = [Clusters(2, np.cos(0.2), 9) for _ in range(2)]
    first = ranks[0].find(["a", "b"], vectors(0.0, 1.0))
    second = ranks[1].find(["a'", "c"], vectors(0.1, 2.0))
    news = [rank.news() for rank in ranks]
    became = [rank.agree(news) for rank in ranks]
    assert became[0] == became[1] == {second[0]: first[0]}
    assert ranks[0].places == ranks[1].places == [*first, second[1]]
    assert [len(rank.news()[0]) for rank in ranks] == [0, 0]


def test_ranks_add_their_counts(monkeypatch):
    """Two rewards stand for two ranks."""
    ranks = [ready(CountBonus(NUMBER)) for _ in range(2)]
    walk(ranks[0], 0, 1, 1)
    walk(ranks[1], 0, 1, 2)
    news = [(rank._own, None) for rank in ranks]
    monkeypatch.setattr(module, "gather", lambda own: news)
    for rank in ranks:
        rank.synchronize()
    for rank in ranks:
        assert rank.metrics() == {"places": 3.0}
        assert walk(rank, 1, 1, start=False) == pytest.approx([4**-0.5])
        assert walk(rank, 1, 2, start=False) == pytest.approx([2**-0.5])
    assert torch.equal(*(rank.state_dict()["counts"]["visits"] for rank in ranks))


def test_texts_that_say_about_the_same_count_as_one(tmp_path):
    tiny = tiny_model("bert", tmp_path / "bert")
    path = ("go to the red ball", "go to the red ball.", "You carry a blue key")

    def paid(**arguments):
        return walk(ready(CountBonus(TEXT, model=tiny, layers=1, **arguments)), *path)

    like = TextEmbedder(tiny, layers=1)(path) @ TextEmbedder(tiny, layers=1)(path).T
    assert like[0, 1] > like[0, 2]
    between, key = float(like[0, 1:].mean()), "embedding"
    assert paid() == [1, 1]
    assert paid(key=key, threshold=0.9999) == [1, 1]
    assert paid(key=key, threshold=between) == pytest.approx([2**-0.5, 1])
    assert paid(key=key, threshold=-1.0) == pytest.approx([2**-0.5, 3**-0.5])
    assert paid(key=key, threshold=0.9999, clusters=1) == pytest.approx([2**-0.5, 3**-0.5])


def test_counts_go_on_from_where_they_stood():
    first, second = (ready(CountBonus(NUMBER, episodic="root")) for _ in range(2))
    walk(first, 0, 1, 2)
    first.synchronize()
    walk(first, 2, 1, 1, start=False)
    second.load_state_dict(first.state_dict())
    second.load_episode_state(first.episode_state())
    assert walk(second, 1, 1, 0, start=False) == walk(first, 1, 1, 0, start=False)
    # Where episodes cannot go on, what was learned does.
    third = ready(CountBonus(NUMBER))
    third.load_state_dict(second.state_dict())
    assert walk(third, 8, 1) == pytest.approx([2**-0.5])
