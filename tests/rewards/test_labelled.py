"""What a labeller says of a step: when it is asked, about which words, and what is made of it."""

from functools import partial

import gymnasium as gym
import numpy as np
import pytest
from reward_tools import TEXT, ready, step
from test_endpoint import error, make, serving
from training import fit

from rl_lightning import PPO, RolloutDataModule, TableEncoder
from rl_lightning.core.errors import ConfigurationError, RunError
from rl_lightning.core.types import EnvSpec
from rl_lightning.rewards import LabelledReward, RuleLabeller, WordLabeller

NAMED = EnvSpec(gym.spaces.Text(80), gym.spaces.Discrete(2), "Words-v0", ["look", "go"])
ASKED = []


def length(text):
    """A rule: how long a text is; nobody knows of empty ones."""
    ASKED.append(text)
    return len(text) or None


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    ASKED.clear()
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def judge(spec=TEXT, num_envs=1, gamma=0.9, **arguments):
    return ready(LabelledReward(spec, RuleLabeller(length), **arguments), num_envs, gamma)


def test_the_verdict_on_where_a_step_leads_to_is_its_reward():
    reward = judge(num_envs=3)
    assert list(reward(step(("aaaa",) * 3, ("b", "bb", "b")))) == [1.0, 2.0, 1.0]
    assert ASKED == ["b", "bb"]
    assert list(reward(step(("b",) * 3, ("bb", "bb", "ccc")))) == [2.0, 2.0, 3.0]
    assert ASKED == ["b", "bb", "ccc"]
    assert reward.metrics() == {"asked": 3.0, "unanswered": 0.0}


def test_the_template_says_what_is_judged():
    reward = judge(NAMED, num_envs=2, template="{before}, {action}: {after}")
    taken = step(("a", "{x}"), ("b", "c"))._replace(action=np.array([1, 0]))
    assert list(reward(taken)) == [8.0, 12.0]
    assert ASKED == ["a, go: b", "{x}, look: c"]
    own = judge(template="{action} {after}", actions=["up", "down"])
    own(step(("a",), ("b",)))
    assert ASKED[-1] == "up b"


def test_resets_are_not_judged():
    reward = judge(num_envs=2)
    assert list(reward(step(("a", "a"), ("bb", "new"), valid=[1, 0]))) == [2.0, 0.0]
    assert ASKED == ["bb"]


def test_only_the_end_of_an_episode_may_be_judged():
    reward = judge(num_envs=4, every="episode_end")
    flags = {"terminated": [1, 0, 0, 1], "truncated": [0, 1, 0, 0], "valid": [1, 1, 1, 0]}
    assert list(reward(step(("a",) * 4, ("bb", "ccc", "d", "e"), **flags))) == [2.0, 3.0, 0.0, 0.0]
    assert ASKED == ["bb", "ccc"]
    assert list(reward(step(("a",) * 4, ("f",) * 4))) == [0.0] * 4
    assert len(ASKED) == 2


def test_shaping_by_a_verdict():
    reward = judge(gamma=0.5, shaping="potential")
    assert list(reward(step(("a",), ("bbbb",), started=[1]))) == [0.5 * 4 - 1]
    assert list(reward(step(("bbbb",), ("cc",), terminated=[1]))) == [-4.0]


def test_no_verdict_is_worth_nothing_and_counted():
    reward = judge(num_envs=2)
    assert list(reward(step(("a", "a"), ("", "b")))) == [0.0, 1.0]
    assert reward.metrics() == {"asked": 2.0, "unanswered": 1.0}
    strict = ready(LabelledReward(TEXT, RuleLabeller(length, on_unreadable="stop")))
    with pytest.raises(RunError, match="None is no number"):
        strict(step(("a",), ("",)))


def test_an_endpoints_verdict():
    with serving("Score: 7", "no idea", error(500)) as (server, url):
        labeller = make(url, pattern=r"score: (\d+)", on_failure="skip", retries=0)
        reward = ready(LabelledReward(TEXT, labeller), 1)
        assert [reward(step(("",), ("a",)))[0] for _ in range(2)] == [7.0, 7.0]
        assert reward(step(("",), ("b",)))[0] == 0.0
        with pytest.warns(UserWarning, match="no answer"):
            assert reward(step(("",), ("c",)))[0] == 0.0
        assert len(server.requests) == 3
        assert reward.metrics() == {"asked": 3.0, "unanswered": 2.0}


def test_verdicts_survive_resuming():
    first, second = judge(), judge()
    first(step(("a",), ("bb",)))
    second.load_state_dict(first.state_dict())
    ASKED.clear()
    assert second(step(("a",), ("bb",)))[0] == 2.0
    assert not ASKED
    assert second.metrics()["asked"] == 1.0
    other = ready(LabelledReward(TEXT, WordLabeller({"bb": 5.0})))
    with pytest.warns(UserWarning, match="those of another labeller"):
        other.load_state_dict(first.state_dict())
    assert other(step(("a",), ("bb",)))[0] == 5.0
    short = judge(num_envs=2, remember=1)
    short(step(("a", "a"), ("b", "c")))
    assert short.state_dict()["asked"]["answers"] == [1.0]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"every": "minute"}, "every must be one of .* not 'minute'"),
        ({"template": "{after} {now}"}, r"template must hold \{after\}, may hold .*, and nothing"),
        ({"template": "{before}"}, r"template must hold \{after\}"),
        ({"template": "{action} {after}"}, "nobody says what the 2 actions"),
        ({"entry": "words"}, "entry: no entry 'words'"),
        ({"shaping": "potential", "every": "episode_end"}, "which every: episode_end is not"),
        ({"shaping": "potential", "template": "{before}{after}"}, "which template: .* is not"),
        ({"remember": -1}, "remember must be at least 0"),
    ],
)
def test_wrong_arguments_are_told(arguments, told):
    with pytest.raises(ConfigurationError, match=told):
        judge(**arguments)


def test_a_run_is_rewarded():
    """Where the exit is reached or time is up, and only there."""
    reward = partial(
        LabelledReward, labeller=RuleLabeller(length), template="{action}|{after}",
        every="episode_end", name="end",
    )  # fmt: skip
    data = RolloutDataModule(
        "TextMaze-v0",
        env_kwargs={"size": 2, "max_steps": 3},
        num_envs=2,
        rollout_steps=8,
        total_frames=16,
        rewards=[reward],
        env_reward_weight=0.0,
        seed=1,
    )
    fit(PPO(data.spec, encoder=partial(TableEncoder, capacity=50)), data)
    assert ASKED
    assert all(text.split("|")[0] in ("north", "east", "south", "west") for text in ASKED)
