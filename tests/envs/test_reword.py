"""The same observations in other words."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

import rl_lightning.envs
from rl_lightning.core.errors import ConfigurationError
from rl_lightning.envs import Reword, make_env
from rl_lightning.envs.text import text_space


class Says(gym.Env):
    """Observes what it is given."""

    action_space = spaces.Discrete(2)

    def __init__(self, what, space=None):
        self.what = what
        self.observation_space = space or spaces.Text(40)

    def reset(self, *, seed=None, options=None):
        return self.what, {}


def reworded(text, words):
    return Reword(Says(text), words).reset()[0]


@pytest.mark.parametrize(
    ("text", "words", "expected"),
    [
        ("Wall north, a wall.", {"wall": "barrier"}, "Barrier north, a barrier."),
        ("walls and a firewall", {"wall": "barrier"}, "walls and a firewall"),
        ("left or right", {"left": "right", "right": "left"}, "right or left"),
        ("far, very far", {"far": "distant", "very far": "remote"}, "distant, remote"),
        ("a.b acb", {"a.b": "x"}, "x acb"),
        ("up", {"up": r"\1"}, r"\1"),
    ],
)
def test_whole_words_at_once_longest_first_case_kept(text, words, expected):
    assert reworded(text, words) == expected


def test_the_space_has_room_and_holds_what_is_said():
    env = Reword(Says("a a a a", spaces.Text(7)), {"a": "aaaa"})
    told, _ = env.reset()
    assert told == "aaaa aaaa aaaa aaaa"
    assert told in env.observation_space
    assert Reword(Says("abc", spaces.Text(7)), {"abc": "a"}).observation_space == text_space(7)


def test_entries_of_a_dict():
    space = spaces.Dict(a=spaces.Text(9), b=spaces.Text(9), n=spaces.Box(0, 1, (1,), np.float32))
    told = {"a": "wall", "b": "wall", "n": np.ones(1, np.float32)}
    both, _ = Reword(Says(told, space), {"wall": "barrier"}).reset()
    assert (both["a"], both["b"], both["n"][0]) == ("barrier", "barrier", 1.0)
    env = Reword(Says(told, space), {"wall": "barrier"}, key="b")
    one, _ = env.reset()
    assert (one["a"], one["b"]) == ("wall", "barrier")
    assert one in env.observation_space
    with pytest.raises(ConfigurationError, match="no text under key='n'"):
        Reword(Says(told, space), {"wall": "barrier"}, key="n")


@pytest.mark.parametrize(
    "words", [{}, None, {"": "x"}, {" ": "x"}, {"a": 1}, {1: "a"}, {"a": "é"}, {"A": "b", "a": "c"}]
)
def test_words_that_are_none(words):
    with pytest.raises(ConfigurationError, match="words"):
        Reword(Says("a"), words)


def test_without_a_text_it_says_so():
    with pytest.raises(ConfigurationError, match="finds no text in Box"):
        Reword(gym.make("CartPole-v1"), {"a": "b"})


def test_from_a_configuration():
    assert rl_lightning.envs.Reword is Reword
    env = make_env("TextMaze-v0", wrappers=[{"Reword": {"words": {"exit": "way out"}}}])
    text, _ = env.reset(seed=0)
    assert "The way out is" in text
    assert "exit" not in text
