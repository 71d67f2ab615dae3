"""Goals that a labeller suggests: which, when they are achieved, and what they are worth."""

from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from llm_tiny import tiny_model
from reward_tools import TEXT, next_bolt, ready, step
from test_endpoint import KEY, error, make, serving
from training import fit

from rl_lightning import DQN, PPO, ActorCritic, ReplayDataModule, RolloutDataModule, TableEncoder
from rl_lightning.agents.agent import adam
from rl_lightning.core.errors import ConfigurationError, RunError
from rl_lightning.core.types import EnvSpec
from rl_lightning.rewards import RuleLabeller, SuggestedGoals, WordLabeller

RED, BLUE, WALL = "go to the red ball", "You carry a blue key", "You see a wall 2 steps forward"
NAMED = EnvSpec(gym.spaces.Text(80), gym.spaces.Discrete(2, start=1), "Words-v0", ["look", "go"])
LISTED = EnvSpec(
    gym.spaces.Dict({"text": gym.spaces.Text(80), "actions": gym.spaces.Text(80)}),
    gym.spaces.Discrete(3),
    "Listed-v0",
)
ASKED = []
SAYS = {}


def says(text):
    ASKED.append(text)
    if text == "fail":
        raise KeyError(text)
    return SAYS.get(text, "")


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    ASKED.clear()
    SAYS.clear()
    SAYS.update({WALL: f"1. {RED}\n - {BLUE}\n", RED: f"{BLUE}."})
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_model("bert", tmp_path_factory.mktemp("tiny") / "bert")


@pytest.fixture
def build(tiny):
    def make(spec=TEXT, num_envs=1, **arguments):
        given = {"labeller": RuleLabeller(says), "model": tiny, "layers": 1, **arguments}
        return ready(SuggestedGoals(spec, **given), num_envs)

    return make


def told(*goals):
    """An info that says what each environment has achieved."""
    column = np.array([*goals, None], dtype=object)[:-1]
    return {"achieved": column, "_achieved": np.array([goal is not None for goal in goals])}


# --- what is suggested ----------------------------------------------------------------------------


def test_each_line_is_a_goal_without_its_number_or_dash(build):
    reward = build(info_key="achieved")
    SAYS["a"] = "1. eat 3 cows\n\n2) sleep.\n* drink \n• run\n-jump\n3 cows\n   \nsleep."
    goals = ("eat 3 cows", "sleep.", "drink", "run", "jump", "3 cows")
    assert reward.suggest(["a", WALL, "x"]) == [goals, (RED, BLUE), ()]
    assert build(info_key="achieved", most_goals=2).suggest(["a"]) == [goals[:2]]


def test_a_pattern_finds_goals(build):
    SAYS["a"] = "Perhaps <eat>, or <sleep>?"
    assert build(info_key="k", pattern="<(.*?)>").suggest(["a"]) == [("eat", "sleep")]
    assert build(info_key="k", pattern="sl[a-z]+").suggest(["a"]) == [("sleep",)]


def test_a_labeller_is_asked_once_for_each_text(build):
    reward = build(num_envs=3)
    for _ in range(2):
        reward(step((WALL, RED, WALL), (BLUE, BLUE, BLUE)))
    assert ASKED == [WALL, RED]
    assert reward.metrics()["asked"] == 2.0
    assert reward.metrics()["asked"] == 0.0
    words = build(question="You read: {observation} What now?")
    words(step((WALL,), (RED,)))
    assert ASKED[2:] == [f"You read: {WALL} What now?"]


def test_of_a_closed_list_each_goal_is_asked_about(build):
    def sensible(question):
        ASKED.append(question)
        return {f"{WALL}: {RED}?": 0.6, f"{WALL}: {BLUE}?": 0.5}.get(question, 0.0)

    reward = build(
        labeller=RuleLabeller(sensible), goals=[RED, BLUE], question="{observation}: {goal}?"
    )
    assert reward.suggest([WALL, RED]) == [(RED,), ()]
    assert len(ASKED) == 4
    assert reward(step((WALL,), (RED,)))[0] == 1.0
    assert reward(step((WALL,), (BLUE,)))[0] == 0.0  # achieved, and not suggested
    words = build(labeller=WordLabeller({"sensible": 1.0, "red": -1.0}), goals=[RED, BLUE])
    assert words.suggest([WALL]) == [(BLUE,)]


# --- what is achieved, and paid -------------------------------------------------------------------


def test_a_goal_is_achieved_by_what_is_as_like_it(build):
    reward = build(num_envs=4)
    paid = reward(step((WALL, WALL, RED, "x"), (RED, WALL, RED, RED)))
    assert list(paid) == [1.0, 0.0, 0.0, 0.0]  # where it is suggested, that is
    assert reward.metrics() == {
        "achieved": 1.0,
        "asked": 3.0,
        "unanswered": 0.0,
        "suggested": pytest.approx((2 + 2 + 1 + 0) / 4),
        "cache_hit_rate": pytest.approx(5 / 9),
    }
    assert build(threshold=-1.0)(step((WALL,), (WALL,)))[0] == 1.0


def test_the_threshold_is_that_of_the_cosine(build, tiny):
    reward = build()
    (like,) = (reward.embedder([RED]) * reward.embedder([WALL])).sum(1).tolist()
    SAYS["x"] = RED
    for threshold, pays in ((like - 1e-3, 1.0), (like + 1e-3, 0.0)):
        assert build(threshold=threshold)(step(("x",), (WALL,)))[0] == pays


def test_steps_are_told_by_the_template(build):
    SAYS["a"] = "a: go, b"
    for template, pays in (("{before}: {action}, {after}", 1.0), ("{after}", 0.0)):
        reward = build(NAMED, template=template)
        taken = step(("a",), ("b",))._replace(action=np.array([2]))
        assert reward(taken)[0] == pays
    named = build(TEXT, template="{before}: {action}, {after}", actions=["go", "stay"])
    assert named(step(("a",), ("b",)))[0] == 1.0
    SAYS["door"] = "open door"
    listed = build(LISTED, entry="text", template="{action} {after}")
    obs = {"text": ("door",), "actions": ("look\nopen",)}
    gone = {"text": ("door",), "actions": ("leave\nstay",)}
    assert listed(step(obs, gone)._replace(action=np.array([1])))[0] == 1.0
    with pytest.raises(RunError, match=r"action 2 has no name among \['look', 'open'\]"):
        listed(step(obs, gone)._replace(action=np.array([2])))


def test_the_environment_may_say_what_is_achieved(build):
    reward = build(num_envs=4, info_key="achieved")
    info = told(RED.upper(), None, [WALL, f"{BLUE}."], WALL)
    assert list(reward(step((WALL,) * 4, (WALL,) * 4, info=info))) == [1.0, 0.0, 1.0, 0.0]
    assert list(reward(step((WALL,) * 4, (WALL,) * 4))) == [0.0] * 4  # nobody says anything
    assert reward.embedder is None
    with pytest.raises(RunError, match=r"info\['achieved'\] must be a text or several"):
        reward(step((WALL,) * 4, (WALL,) * 4, info={"achieved": np.ones(4)}))


def test_each_goal_is_paid_once_an_episode(build):
    reward = build(num_envs=2)
    paid = []
    for after, started in ((RED, 1), (RED, 0), (BLUE, 0), (BLUE, 0), (RED, 1)):
        paid.append(reward(step((WALL, "x"), (after, after), started=[started, started]))[0])
    assert paid == [1.0, 0.0, 1.0, 0.0, 1.0]


def test_resets_are_neither_asked_about_nor_paid(build):
    reward = build(num_envs=2)
    assert list(reward(step((WALL, "new"), (RED, RED), valid=[1, 0]))) == [1.0, 0.0]
    assert ASKED == [WALL]


@pytest.mark.parametrize(
    ("novelty", "expected"),
    [
        ("episode", [[1, 1], [1, 1], [1, 0]]),
        ("count", [[1, 2**-0.5], [3**-0.5, 4**-0.5], [5**-0.5, 0]]),
        ("first", [[1, 0], [0, 0], [0, 0]]),
    ],
)
def test_what_was_achieved_before_is_worth_less(build, novelty, expected):
    reward = build(num_envs=2, novelty=novelty)
    paid = []
    for after in ((RED, RED), (RED, RED), (RED, "x")):
        paid.append(list(reward(step((WALL, WALL), after, started=[1, 1]))))
        reward.synchronize()
    assert paid == pytest.approx(np.array(expected))
    # Another goal is another goal; of two achieved at once the one that is worth more counts.
    both = build(info_key="achieved", novelty=novelty)
    assert both(step((WALL,), ("",), started=[1], info=told([RED])))[0] == 1.0
    assert both(step((WALL,), ("",), started=[1], info=told([RED, BLUE])))[0] == 1.0


# --- failures -------------------------------------------------------------------------------------


def test_a_labeller_that_fails_stops_or_is_counted(build):
    with pytest.raises(RunError, match="failed on 'fail'"):
        build()(step(("fail",), (RED,)))
    reward = build(labeller=RuleLabeller(says, on_failure="skip"))
    for _ in range(2):
        with pytest.warns(UserWarning, match="1 of 1 questions have no answer"):
            assert list(reward(step(("fail",), (RED,)))) == [0.0]
    assert reward.metrics()["unanswered"] == 2.0  # asked again: it may be there by now


def test_an_endpoint_suggests_and_its_key_stands_nowhere(build, monkeypatch, tmp_path):
    monkeypatch.setenv("OWN_API_KEY", KEY)

    def act(body, number):
        return f"1. {RED}\n2. {KEY}" if number == 0 else error(500)

    cache = tmp_path / "answers.jsonl"
    with serving(act) as (server, url):
        labeller = make(
            url, api_key_env="OWN_API_KEY", cache=str(cache), on_failure="skip", retries=0
        )
        reward = build(num_envs=2, labeller=labeller)
        with pytest.warns(UserWarning, match="no answer"):
            paid = reward(step((WALL, "x"), (RED, RED))), reward(step(("x", WALL), (RED, RED)))
        assert [list(one) for one in paid] == [[1.0, 0.0], [0.0, 1.0]]
        assert len(server.requests) == 3
    torch.save([reward.state_dict(), reward.episode_state()], tmp_path / "state.pt")
    for file in tmp_path.iterdir():
        assert KEY.encode() not in file.read_bytes()
        assert b"OWN_API_KEY" not in file.read_bytes()
    assert RED.encode() in cache.read_bytes()


# --- resuming -------------------------------------------------------------------------------------


def test_what_was_said_and_achieved_is_remembered(build):
    first, second = (build(num_envs=2, novelty="count") for _ in range(2))
    first(step((WALL, WALL), (RED, "x"), started=[1, 1]))
    first.synchronize()
    first(step((WALL, WALL), (BLUE, "x")))
    second.load_state_dict(first.state_dict())
    second.load_episode_state(first.episode_state())
    ASKED.clear()
    again = step((WALL, WALL), (RED, BLUE))
    assert list(second(again)) == list(first(again)) == [0.0, pytest.approx(2**-0.5)]
    assert second.metrics() == first.metrics()
    assert not ASKED


def test_what_another_labeller_has_said_is_left(build):
    first, second = build(), build(labeller=RuleLabeller(next_bolt))
    first.suggest([WALL])
    with pytest.warns(UserWarning, match="those of another labeller"):
        second.load_state_dict(first.state_dict())
    assert second.suggest(["3 bolts are open."]) == [("Open bolt 4.", "Go home.")]


def test_no_more_is_remembered_than_is_told(build):
    reward = build(info_key="k", remember=1)
    reward.suggest([WALL, RED])
    assert len(reward.state_dict()["asked"]["answers"]) == 1


def test_the_model_is_read_as_told(build):
    sizes = {"batch_size": 3, "cache_size": 7, "max_length": 20}
    embedder = build(pooling="cls", dtype="bfloat16", **sizes).embedder
    assert (embedder.pooling, embedder.batch_size, embedder.cache.capacity) == ("cls", 3, 7)
    assert embedder.backbone.tokens.max_length == 20
    assert embedder.backbone.source["dtype"] == "bfloat16"
    assert build(layers=2).embedder.backbone.model.config.num_hidden_layers == 2


# --- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"labeller": says}, "labeller must be a Labeller, such as RuleLabeller"),
        ({"labeller": WordLabeller({"a": 1.0})}, "WordLabeller answers with numbers"),
        ({"goals": []}, "goals must be a list of texts, not \\[\\]"),
        ({"goals": ["", "a"]}, "goals must be a list of texts"),
        ({"goals": "a"}, "goals must be a list of texts, not 'a'"),
        ({"question": "what?"}, r"question must hold \{observation\}, and nothing else"),
        ({"question": "{observation} {goal}"}, r"question must hold \{observation\}, and nothing"),
        ({"goals": ["a"], "question": "{goal}"}, r"must hold \{observation\} and \{goal\}"),
        ({"question": "{observation"}, "a brace by itself is doubled"),
        ({"pattern": "("}, "pattern: '\\(' is no regular expression"),
        ({"most_goals": 0}, "most_goals must be at least 1, not 0"),
        ({"entry": "text"}, "entry: no entry 'text' in observations of Words-v0; it has none"),
        ({"template": "{before}"}, r"template must hold \{after\}, may hold \{before\} and \{acti"),
        ({"template": "{after} {now}"}, "template must hold .*; not '{after} {now}'"),
        ({"template": "{action} {after}"}, "nobody says what the 2 actions of Words-v0 are called"),
        ({"template": "{action}{after}", "actions": ["a"]}, "actions must be 2 texts"),
        ({"actions": ["a", "b"]}, r"actions names what a template without \{action\}"),
        ({"threshold": 2.0}, "threshold must be between -1 and 1, not 2.0"),
        ({"novelty": "new"}, "novelty must be one of .* not 'new'"),
        ({"remember": -1}, "remember must be at least 0"),
        ({"model": "no-such-model"}, "no-such-model"),
        ({"pooling": "max"}, "pooling='max': use one of"),
    ],
)
def test_wrong_arguments_are_told(build, arguments, told):
    with pytest.raises(ConfigurationError, match=told):
        build(**arguments)


def test_actions_without_names_are_told(build):
    spec = EnvSpec(gym.spaces.Text(8), gym.spaces.Box(-1, 1, (2,)), "Moves-v0")
    with pytest.raises(ConfigurationError, match=r"those of Moves-v0 are Box.*leave it out"):
        build(spec, template="{action} {after}")


# --- runs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ppo", "dqn"])
def test_final_observations_are_judged_and_never_what_comes_after_them(kind, tiny):
    """Opening the last bolt ends an episode: it is paid for, and what it is told by is there."""
    shown = []

    class Spied(SuggestedGoals):
        def __call__(self, step):
            paid = super().__call__(step)
            ends = step.terminated | step.truncated
            shown.extend(zip(step.next_obs, paid, ends, strict=True))
            return paid

    rule = RuleLabeller(lambda text: f"{int(text.split()[0]) + 1} bolts are open.")
    rewards = [partial(Spied, labeller=rule, model=tiny, layers=1, threshold=0.99999)]
    shared = {"env_kwargs": {"length": 1}, "num_envs": 2, "rewards": rewards, "seed": 1}
    if kind == "ppo":
        data = RolloutDataModule("TextLock-v0", rollout_steps=16, total_frames=32, **shared)
        agent = PPO(data.spec, encoder=TableEncoder)
    else:
        data = ReplayDataModule(
            "TextLock-v0",
            warmup_frames=4,
            frames_per_epoch=16,
            batch_size=4,
            total_frames=32,
            **shared,
        )
        agent = DQN(data.spec, encoder=TableEncoder)
    fit(agent, data)
    ends = [(text, paid) for text, paid, end in shown if end]
    assert ("1 bolts are open.", 1.0) in ends
    assert all(paid == (text == "1 bolts are open.") for text, paid, _ in shown)


@pytest.mark.learning
def test_suggested_goals_open_a_lock_that_chance_does_not():
    """By chance it opens in one of 16,000 attempts.

    A goal is paid anew in each episode, and values that go on behind time limits promise that: with
    a γ nearer to 1 not to end an episode would be worth more than to open the lock.
    """
    success = {}
    goals = partial(
        SuggestedGoals, labeller=RuleLabeller(next_bolt), info_key="achieved", weight=0.1
    )
    for rewards in ([], [goals]):
        torch.manual_seed(0)
        data = RolloutDataModule(
            "TextLock-v0",
            env_kwargs={"length": 14},
            num_envs=16,
            rollout_steps=28,
            minibatch_size=112,
            passes=4,
            total_frames=16_000,
            rewards=rewards,
            seed=3,
        )
        agent = PPO(
            data.spec,
            encoder=partial(TableEncoder, capacity=16),
            network=partial(ActorCritic, hidden=(32,)),
            optimizer=partial(adam, lr=3e-3),
            entropy_coef=0.01,
            gamma=0.9,
        )
        agent.on_train_epoch_end = lambda d=data, on=bool(rewards): success.update(
            {on: d.episode_metrics()["train/success"]}
        )
        fit(agent, data)
    assert success[False] == 0.0
    assert success[True] > 0.9
