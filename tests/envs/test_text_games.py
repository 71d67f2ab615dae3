"""Commands as numbered actions, and what was seen and done before: by hand, on a corridor."""

import copy
import pickle
import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from wordy import Corridor

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.data.resume.environments import Snapshots
from rl_lightning.envs import AdmissibleActions, TextHistory, make_env, make_vector_env
from rl_lightning.envs.text_maze import TextMazeEnv


def corridor():
    return AdmissibleActions(Corridor(), otherwise="")


NAME = "wordy:WordyCorridor-v0"
WRAPPERS = [{"AdmissibleActions": {"otherwise": "", "max_actions": 4}}, {"TextHistory": {}}]


# --- AdmissibleActions


def test_an_episode_by_hand():
    env = AdmissibleActions(Corridor(), max_actions=4)
    obs, info = env.reset(options={"at": 0})
    assert obs == {"observation": "Room 0.", "goal": "Reach the end.", "actions": "wait\ngo on"}
    assert info["action_mask"].tolist() == [True, True, False, False]
    assert info["action_mask"].dtype == bool
    assert info["admissible_actions"] == ["wait", "go on"]
    obs, reward, terminated, truncated, info = env.step(1)
    assert (obs["observation"], reward, terminated, truncated) == ("Room 1.", 1.0, False, False)
    assert obs["actions"] == "go back\ngo on\nsing"
    assert info["action_mask"].tolist() == [True, True, True, False]
    assert env.step(np.int64(0))[0]["observation"] == "Room 0."
    for action in (1, 1):
        env.step(action)
    obs, _, terminated, _, info = env.step(0)
    assert terminated
    assert obs == {"observation": "Room 3.", "goal": "Reach the end.", "actions": ""}
    assert info["action_mask"].tolist() == [True, False, False, False]
    assert env.observation_space.contains(obs)
    assert env.action_space == gym.spaces.Discrete(4)


def test_an_index_beyond_the_admitted_ones():
    env = AdmissibleActions(Corridor(), max_actions=4)
    env.reset(options={"at": 0})
    with pytest.raises(ConfigurationError, match=r"action 2 of 2 .*otherwise="):
        env.step(2)
    env = AdmissibleActions(Corridor(), max_actions=4, otherwise="go on")
    env.reset(options={"at": 0})
    assert env.step(3)[0]["observation"] == "Room 1."
    env = AdmissibleActions(Corridor(), max_actions=4, otherwise="")
    env.reset(options={"at": 0})
    assert env.step(3)[0]["observation"] == "Room 0."


def test_the_goal_is_that_of_the_episode_or_a_given_one_or_left_out():
    assert corridor().reset()[0]["goal"] == "Reach the end."
    assert AdmissibleActions(Corridor(), goal="Sing.").reset()[0]["goal"] == "Sing."
    env = AdmissibleActions(Corridor(), goal_key=None)
    assert set(env.reset()[0]) == set(env.observation_space.spaces) == {"observation", "actions"}
    silent = Corridor()
    silent.reset = lambda **_: ("Room 0.", {"admissible_actions": ["wait"]})
    assert AdmissibleActions(silent).reset()[0]["goal"] == ""


def test_entries_are_called_as_asked():
    env = AdmissibleActions(
        Corridor(), observation_key="text", goal_key="task", actions_key="choices"
    )
    assert set(env.reset()[0]) == set(env.observation_space.spaces) == {"text", "task", "choices"}


def test_a_dict_keeps_its_entries():
    env = AdmissibleActions(Corridor(nested=True))
    obs, _ = env.reset(options={"at": 1})
    assert set(obs) == {"view", "n", "goal", "actions"}
    assert obs["view"] == "Room 1."
    assert env.observation_space.contains(obs)


@pytest.mark.parametrize(
    "keys",
    [
        {"actions_key": "observation"},
        {"goal_key": "actions"},
        {"goal_key": "observation"},
    ],
)
def test_no_two_entries_of_one_name(keys):
    with pytest.raises(ConfigurationError, match="two entries"):
        AdmissibleActions(Corridor(), **keys)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"max_actions": 0}, "max_actions must be at least 1"),
        ({"max_action_length": 0}, "max_action_length must be at least 1"),
        ({"max_goal_length": -1}, "max_goal_length must be at least 0"),
    ],
)
def test_arguments_out_of_range(kwargs, message):
    with pytest.raises(ConfigurationError, match=message):
        AdmissibleActions(Corridor(), **kwargs)


@pytest.mark.parametrize(
    ("admits", "kwargs", "message"),
    [
        (None, {}, "needs info"),
        ("go on", {}, "a list of texts, not go on"),
        ([], {}, "is empty"),
        (["a", "b", "c"], {"max_actions": 2}, r"max_actions=2: .* admits 3"),
        (["go on"], {"max_action_length": 4}, r"max_action_length=4: 'go on' has 5"),
        (["go", 3], {}, "action must be a text, not int"),
        (["go\non"], {}, "one line"),
        (["größer"], {}, "printable ASCII"),
        (["go on"], {"max_goal_length": 3}, "max_goal_length=3: 'Reach the end.' has 14"),
    ],
)
def test_what_cannot_be_shown_is_one_sentence(admits, kwargs, message):
    env = Corridor()
    env.admits = dict.fromkeys(range(4), admits)
    with pytest.raises(ConfigurationError, match=message):
        AdmissibleActions(env, **kwargs).reset()


def test_numbered_actions_need_no_such_wrapper():
    with pytest.raises(ConfigurationError, match="needs no such wrapper"):
        AdmissibleActions(TextMazeEnv())


# --- TextHistory


def history(env, actions):
    texts = [env.reset(options={"at": 0})[0]["history"]]
    return texts + [env.step(action)[0]["history"] for action in actions]


def test_a_history_by_hand():
    env = TextHistory(corridor(), observations=1, actions=2)
    assert history(env, [0, 1, 2, 1, 0]) == [
        "",
        "Observation: Room 0.\nAction: wait",
        "Action: wait\nObservation: Room 0.\nAction: go on",
        "Action: go on\nObservation: Room 1.\nAction: sing",
        "Action: sing\nObservation: Room 1.\nAction: go on",
        "Action: go on\nObservation: Room 2.\nAction: go on",
    ]
    assert env.reset()[0]["history"] == ""


def test_as_many_as_asked():
    env = TextHistory(corridor(), observations=3, actions=0)
    assert history(env, [0, 1])[-1] == "Observation: Room 0.\nObservation: Room 0."
    env = TextHistory(corridor(), observations=0, actions=1)
    assert history(env, [0, 1])[-1] == "Action: go on"
    with pytest.raises(ConfigurationError, match="keep some"):
        TextHistory(corridor(), observations=0, actions=0)


def test_an_action_that_was_not_admitted_has_no_name():
    assert history(TextHistory(corridor(), observations=0), [7]) == ["", "Action: "]


def test_a_text_becomes_a_dict_and_text_actions_are_their_own_names():
    env = TextHistory(Corridor(), observation_key="text", history_key="past")
    assert env.reset(options={"at": 0})[0] == {"text": "Room 0.", "past": ""}
    obs = env.step("go on")[0]
    assert obs == {"text": "Room 1.", "past": "Observation: Room 0.\nAction: go on"}
    assert env.observation_space.contains(obs)


def test_below_admissible_actions_it_is_the_same():
    inside = AdmissibleActions(TextHistory(Corridor()), otherwise="")
    assert history(inside, [0, 1, 2]) == history(TextHistory(corridor()), [0, 1, 2])


def test_an_entry_of_a_dict():
    env = TextHistory(AdmissibleActions(Corridor(nested=True)), observation_key="view")
    assert history(env, [1])[-1] == "Observation: Room 0.\nAction: go on"


def test_given_names():
    names = ["north", "east", "south", "west"]
    env = TextHistory(TextMazeEnv(), observations=0, action_names=names)
    env.reset(seed=0)
    env.step(2)
    assert env.step(np.int64(1))[0]["history"] == "Action: south\nAction: east"
    with pytest.raises(ConfigurationError, match="1 names"):
        TextHistory(TextMazeEnv(), action_names=["north"])
    with pytest.raises(ConfigurationError, match="expected a list of texts"):
        TextHistory(TextMazeEnv(), action_names="nesw")
    with pytest.raises(ConfigurationError, match=r"max_action_length=4.*'north'"):
        TextHistory(TextMazeEnv(), action_names=names, max_action_length=4)
    unnamed = TextHistory(TextMazeEnv())
    unnamed.reset()
    with pytest.raises(ConfigurationError, match="give action_names"):
        unnamed.step(0)


def test_names_count_from_the_first_action():
    class FromOne(gym.ActionWrapper):
        def __init__(self):
            super().__init__(TextMazeEnv())
            self.action_space = gym.spaces.Discrete(4, start=1)

        def action(self, action):
            return action - 1

    env = TextHistory(FromOne(), observations=0, action_names=["n", "e", "s", "w"])
    env.reset(seed=0)
    assert env.step(1)[0]["history"] == "Action: n"


def test_what_has_no_text_is_refused():
    with pytest.raises(ConfigurationError, match="observation_key='observation' is none of"):
        TextHistory(gym.make("CartPole-v1"))
    with pytest.raises(ConfigurationError, match="such an entry already"):
        TextHistory(TextHistory(Corridor()))
    with pytest.raises(ConfigurationError, match="observations must be at least 0"):
        TextHistory(Corridor(), observations=-1)


def test_the_longest_history_fits_its_space():
    env = TextHistory(AdmissibleActions(Corridor(), otherwise=""), observations=2, actions=2)
    env.env.unwrapped.admits[0] = ["x" * 100]
    env.env.unwrapped._seen = lambda: "y" * 20
    env.reset(options={"at": 0})
    for _ in range(4):
        assert env.observation_space.contains(env.step(0)[0])


# --- with the rest


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_gymnasiums_checker_is_content():
    check_env(corridor(), skip_render_check=True)
    check_env(TextHistory(corridor()), skip_render_check=True)


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_several_at_once_are_each_alone(vectorization):
    many = make_vector_env(NAME, 2, vectorization, wrappers=WRAPPERS)
    alone = [make_env(NAME, wrappers=WRAPPERS) for _ in range(2)]
    obs, info = many.reset(seed=5)
    firsts = [env.reset(seed=5 + i) for i, env in enumerate(alone)]
    for _ in range(12):
        for key in ("observation", "goal", "actions", "history"):
            assert obs[key] == tuple(first[0][key] for first in firsts)
        masks = np.stack([first[1]["action_mask"] for first in firsts])
        assert np.array_equal(info["action_mask"], masks)
        actions = masks.sum(1) - 1
        obs, *_, info = many.step(actions)
        for i, env in enumerate(alone):
            one, _, terminated, _, one_info = env.step(actions[i])
            if terminated:
                assert info["final_obs"][i]["actions"] == ""
                assert "go on" in info["final_obs"][i]["history"]
            firsts[i] = env.reset() if terminated else (one, one_info)
    many.close()


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_resumed_goes_on_as_uninterrupted(vectorization):
    def make():
        return make_vector_env(NAME, 2, vectorization, wrappers=WRAPPERS)

    copies = Snapshots(make_env(NAME, wrappers=WRAPPERS))
    assert copies.reason is None
    first, second = make(), make()
    first.reset(seed=1)
    first.step(np.array([1, 0]))
    second.reset(seed=2)
    copies.put(second, copies.take(first))
    rng = np.random.default_rng(0)
    for _ in range(20):
        actions = rng.integers(3, size=2)
        ours, theirs = first.step(actions), second.step(actions)
        assert ours[0] == theirs[0]
        assert all(np.array_equal(a, b) for a, b in zip(ours[1:4], theirs[1:4], strict=True))
    first.close()
    second.close()


def test_copies_are_independent():
    env = TextHistory(corridor())
    env.reset(options={"at": 0})
    env.step(1)
    for other in (copy.deepcopy(env), pickle.loads(pickle.dumps(env))):
        assert other.step(2)[0] == env.step(2)[0]
        env.reset(options={"at": 0})
        env.step(1)


def test_without_textworld_one_sentence_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "textworld", None)
    with pytest.raises(ConfigurationError, match="pip install textworld"):
        make_env("TextWorld-v0")
