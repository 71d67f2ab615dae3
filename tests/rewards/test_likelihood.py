"""log p of actions, goals and observations under a frozen language model."""

from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from llm_tiny import tiny_model
from reward_tools import TEXT, ready, step
from training import fit

from rl_lightning import DQN, PPO, ReplayDataModule, RolloutDataModule, TableEncoder
from rl_lightning.core.errors import ConfigurationError, RunError
from rl_lightning.core.types import EnvSpec
from rl_lightning.llm.load import load_backbone
from rl_lightning.llm.options import OptionScorer
from rl_lightning.rewards import Likelihood

RED, KEY, WALL = "go to the red ball", "You carry a blue key", "You see a wall 2 steps forward"
NAMES = ["open the yellow door", "go"]
NAMED = EnvSpec(gym.spaces.Text(80), gym.spaces.Discrete(2, start=3), "Words-v0", NAMES)
LISTED = EnvSpec(
    gym.spaces.Dict({"text": gym.spaces.Text(80), "actions": gym.spaces.Text(80)}),
    gym.spaces.Discrete(2),
    "Listed-v0",
)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {kind: tiny_model(kind, root / kind) for kind in ("gpt2", "bert", "t5")}


@pytest.fixture(scope="module")
def build(models):
    def make(spec=TEXT, num_envs=1, gamma=0.9, **arguments):
        given = {"model": models["gpt2"], "max_length": 64, **arguments}
        return ready(Likelihood(spec, **given), num_envs, gamma)

    return make


@pytest.fixture(scope="module")
def by_hand(models):
    """log p and how many tokens: one row by itself, token after token."""
    loaded, tokenizer = load_backbone(models["gpt2"], head=True)

    @torch.no_grad()
    def of(prompt, text):
        begin = len(tokenizer(prompt)["input_ids"])
        ids = tokenizer(prompt + text)["input_ids"]
        said = loaded(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        own = [float(said[i - 1, ids[i]]) for i in range(begin, len(ids))]
        return sum(own), len(own)

    return of


def near(total):
    return pytest.approx(total, abs=2e-4)


def test_of_the_action_that_was_taken(build, by_hand):
    taken = step((WALL, KEY), (RED, RED))._replace(action=np.array([3, 4]))
    expected = [
        by_hand(f"{obs}\nAction:", f" {name}") for obs, name in zip((WALL, KEY), NAMES, strict=True)
    ]
    assert build(NAMED, 2, normalise="none")(taken) == near([total for total, _ in expected])
    assert build(NAMED, 2)(taken) == near([total / count for total, count in expected])
    asked = build(NAMED, 2, template="Now {observation}. I", actions=["look", "run"])(taken)
    expected = [by_hand(f"Now {o}. I", f" {a}") for o, a in ((WALL, "look"), (KEY, "run"))]
    assert asked == near([total / count for total, count in expected])


def test_of_an_action_that_the_observation_names(build, by_hand):
    reward = build(LISTED, 2, template="{text}:", normalise="none")
    obs = {"text": (WALL, WALL), "actions": ("look\ngo", "")}
    got = reward(step(obs, obs, valid=[1, 0])._replace(action=np.array([1, 0])))
    assert got == near([by_hand(f"{WALL}:", " go")[0], 0.0])
    with pytest.raises(RunError, match=r"action 0 is none of the 0 texts .*action_mask"):
        reward(step(obs, obs)._replace(action=np.array([1, 0])))


def test_of_a_goal_after_the_observation(build, by_hand):
    reward = build(num_envs=2, of="goal", goal=RED)
    expected = [by_hand(f"{text}\nGoal:", f" {RED}") for text in (WALL, KEY)]
    assert reward(step((RED, RED), (WALL, KEY))) == near([a / b for a, b in expected])
    reward = build(of="goal", goal=KEY, template="{observation} so:", normalise="none")
    assert reward(step((RED,), (WALL,)))[0] == near(by_hand(f"{WALL} so:", f" {KEY}")[0])


def test_of_an_observation_after_a_prompt(build, by_hand):
    texts = (WALL, KEY, WALL, "")
    reward = build(num_envs=4, of="observation", template="You read:")
    expected = [by_hand("You read:", f" {text}") for text in texts[:3]]
    assert reward(step((RED,) * 4, texts)) == near([*(a / b for a, b in expected), 0.0])
    reward = build(of="observation", goal=RED)
    total, count = by_hand(f"Goal: {RED}\nObservation:", f" {WALL}")
    assert reward(step((RED,), (WALL,)))[0] == near(total / count)


def test_batched_equals_single(models, build):
    texts = [f"{WALL} {i}" + " and more" * (i % 3) for i in range(20)]  # more than one row holds
    whole = build(num_envs=20, of="observation", template="a:", batch_size=3)(step(texts, texts))
    single = build(of="observation", template="a:", batch_size=1)
    assert whole == pytest.approx([single(step((t,), (t,)))[0] for t in texts], abs=1e-4)
    scorer = OptionScorer(models["gpt2"], max_length=64)
    log_prob, tokens = scorer.pairs([("a:", " b"), ("c:", " d e"), ("a:", " b")])
    torch.testing.assert_close(log_prob[:2], scorer(["a:", "c:"], [" b", " d e"]).diagonal())
    assert tokens.tolist() == [len(scorer.tokenizer(t)["input_ids"]) for t in (" b", " d e", " b")]


def test_shaping_takes_what_is_a_function_of_the_state(build):
    plain = build(num_envs=2, of="goal", goal=RED)(step((WALL, KEY), (WALL, KEY)))
    shaped = build(of="goal", goal=RED, gamma=0.5, shaping="potential")
    assert shaped(step((WALL,), (KEY,), started=[1]))[0] == near(0.5 * plain[1] - plain[0])
    assert shaped(step((KEY,), (WALL,), terminated=[1]))[0] == near(-plain[1])


@pytest.mark.parametrize("of", ["action", "goal", "observation"])
def test_texts_are_scored_once_and_remembered(build, of):
    given = {
        "action": {"spec": NAMED},
        "goal": {"goal": RED},
        "observation": {"goal": RED},
    }[of]
    first, second = (build(of=of, num_envs=2, **given) for _ in range(2))
    taken = step((WALL, KEY), (WALL, WALL))._replace(action=np.array([3, 3]))
    got = list(first(taken))
    hits = {"action": 0.0}.get(of, 0.5)
    assert first.metrics() == {"cache_hit_rate": hits}
    assert first.metrics() == {}
    assert list(first(taken)) == got
    second.load_state_dict(first.state_dict())
    if of == "action":
        second.actions._read_frozen = None
    else:
        second.scorer = type("None", (), {"backbone": second.scorer.backbone})()
    assert list(second(taken)) == got


def test_what_was_scored_otherwise_is_not_taken(build):
    first = build(of="goal", goal=RED)
    first(step((WALL,), (WALL,)))
    for other in ({"goal": KEY}, {"goal": RED, "template": "{observation}:"}):
        second = build(of="goal", **other)
        with pytest.warns(UserWarning, match="belong to another model, template or goal"):
            second.load_state_dict(first.state_dict())
        assert len(second.cache) == 0
    layers = build(of="goal", goal=RED, layers=1)
    with pytest.warns(UserWarning, match="another model"):
        layers.load_state_dict(first.state_dict())


def test_the_model_is_read_as_told(build):
    shape = {"dtype": "bfloat16", "batch_size": 3, "max_length": 20, "layers": 1, "cache_size": 7}
    encoder = build(NAMED, **shape).actions
    scorer = build(of="goal", goal=RED, **shape).scorer
    for part in (encoder, scorer):
        assert part.batch_size == 3
        assert part.backbone.source["dtype"] == "bfloat16"
        assert len(part.backbone.model.transformer.h) == 1
    assert (encoder.choices.max_length, encoder.cache.capacity) == (20, 7)
    assert scorer.max_length == 20


def test_the_cache_may_be_small(build):
    reward = build(of="goal", goal=RED, num_envs=3, cache_size=1)
    reward(step((WALL, KEY, RED), (WALL, KEY, RED)))
    assert len(reward.cache) == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"of": "state"}, "of must be one of .* not 'state'"),
        ({"normalise": "word"}, "normalise must be one of .* not 'word'"),
        ({"shaping": "potential"}, "which of: action is not"),
        ({"goal": RED}, "goal says nothing to of: action"),
        ({"entry": "text"}, "entry says nothing to of: action"),
        ({"of": "goal", "goal": RED, "actions": NAMES}, "actions says nothing to of: goal"),
        ({}, "Likelihood: .*nobody says what the 2 actions of Words-v0 are called"),
        ({"actions": NAMES, "template": "{now}:"}, r"no field \{now\}; there are 'observation'"),
        ({"of": "goal"}, "goal must be a text where of: goal"),
        ({"of": "observation"}, "goal must be a text where"),
        ({"of": "observation", "template": "a:", "goal": RED}, "goal must be a text where"),
        ({"of": "goal", "goal": RED, "template": "a:"}, r"template must hold \{observation\}"),
        ({"of": "goal", "goal": RED, "template": "{observation} {x}:"}, "nothing else in braces"),
        ({"of": "goal", "goal": RED, "template": "{observation}"}, "must end in a word or sign"),
        ({"of": "observation", "template": "a "}, "must end in a word or sign"),
        ({"of": "goal", "goal": RED, "entry": "text"}, "entry: no entry 'text' in observations"),
        ({"of": "goal", "goal": RED, "batch_size": 0}, "batch_size must be at least 1"),
        ({"of": "goal", "goal": RED, "cache_size": -1}, "cache_size must be at least 0"),
        ({"of": "goal", "goal": RED, "dtype": "float8"}, "dtype='float8'"),
    ],
)
def test_wrong_arguments_are_told(build, arguments, told):
    with pytest.raises(ConfigurationError, match=told):
        build(**arguments)


@pytest.mark.parametrize(("kind", "told"), [("bert", "bert"), ("t5", "reads by one half")])
def test_models_that_cannot_go_on_are_told(build, models, kind, told):
    with pytest.raises(ConfigurationError, match=told):
        build(of="goal", goal=RED, model=models[kind])


def test_texts_that_are_too_long_are_cut(build, by_hand):
    """Of a goal the observation loses its beginning, of an observation its own end is lost."""
    long = " ".join([WALL] * 9)
    with pytest.warns(UserWarning, match="a text was cut to max_length=16"):
        goal = build(of="goal", goal=RED, max_length=16)(step((WALL,), (long,)))
    with pytest.warns(UserWarning, match="a text was cut to max_length=16"):
        seen = build(of="observation", template="Read:", max_length=16)(step((WALL,), (long,)))
    scorer = OptionScorer(build(of="goal", goal=RED).scorer.backbone.source["model"], max_length=99)
    prompt, option = f"{long}\nGoal:", f" {RED}"
    ids = scorer.tokenizer(prompt + option)["input_ids"]
    own = len(ids) - len(scorer.tokenizer(prompt)["input_ids"])
    assert goal[0] == near(said(scorer, ids[-16:], own) / own)
    ids = scorer.tokenizer(f"Read: {long}")["input_ids"][:16]
    own = 16 - len(scorer.tokenizer("Read:")["input_ids"])
    assert seen[0] == near(said(scorer, ids, own) / own)


@torch.no_grad()
def said(scorer, ids, own):
    """log p of the last tokens."""
    logits = scorer.backbone.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(float(logits[i - 1, ids[i]]) for i in range(len(ids) - own, len(ids)))


def test_a_goal_longer_than_the_model_reads_is_told(build):
    with pytest.raises(ConfigurationError, match="longer than max_length=8"):
        build(of="goal", goal=f"{RED} {KEY}", max_length=8)(step((WALL,), (WALL,)))


@pytest.mark.parametrize("kind", ["ppo", "dqn"])
def test_runs_are_rewarded(kind, models):
    rewards = [
        partial(Likelihood, model=models["gpt2"], layers=1, max_length=128),
        partial(
            Likelihood, of="goal", goal=RED, model=models["gpt2"], layers=1, shaping="potential"
        ),
    ]
    told = {"env_kwargs": {"size": 3}, "num_envs": 2, "rewards": rewards, "seed": 1}
    table = partial(TableEncoder, capacity=100)
    if kind == "ppo":
        data = RolloutDataModule("TextMaze-v0", rollout_steps=8, total_frames=32, **told)
        agent = PPO(data.spec, encoder=table)
    else:
        data = ReplayDataModule(
            "TextMaze-v0",
            warmup_frames=4,
            frames_per_epoch=16,
            batch_size=4,
            total_frames=32,
            **told,
        )
        agent = DQN(data.spec, encoder=table)
    seen = {}
    agent.log_dict = lambda values, *a, **k: seen.update(values)
    fit(agent, data, log_every_n_steps=1)
    assert seen["reward/likelihood"] < 0.0
    assert seen["reward/likelihood_2"] != 0.0
    assert 0.0 < seen["reward/likelihood/cache_hit_rate"] <= 1.0
