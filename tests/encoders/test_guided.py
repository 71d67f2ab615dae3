"""GuidedEncoder: the prior by hand, its schedule, what reaches which part, and what is refused."""

from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from llm_tiny import tiny_model

from rl_lightning import DictEncoder, GuidedEncoder, LLMEncoder, MLPEncoder, TextActionEncoder
from rl_lightning.core.errors import ConfigurationError
from rl_lightning.core.types import EnvSpec
from rl_lightning.encoders.actions import normalized
from rl_lightning.encoders.guided import LOWEST
from rl_lightning.envs.text import text_space

s = gym.spaces
NAMES = ["north", "pick up the green key", "east"]
BOX = s.Box(-1.0, 1.0, (2,), np.float32)
SPACE = s.Dict({"observation": BOX, "text": text_space(60)})
SPEC = EnvSpec(SPACE, s.Discrete(3), "Both-v0")
OBS = {
    "observation": np.array([[1.0, 2.0], [3.0, 4.0]], np.float32),
    "text": ("There is a wall to the north.", "You carry a blue key"),
}
VECTOR = partial(DictEncoder, ignore=["text"])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model("llama", tmp_path_factory.mktemp("llama"), layers=2)


def prior(model, **kwargs):
    return partial(
        TextActionEncoder, **{"model": model, "actions": NAMES, "max_length": 40, **kwargs}
    )


def build(model, spec=SPEC, encoder=VECTOR, prior_args=None, **kwargs):
    return GuidedEncoder(spec, encoder, prior(model, **(prior_args or {})), **kwargs)


def scored(encoder, obs=OBS):
    return encoder.prior.score(encoder.prior.preprocess(obs))


@pytest.mark.parametrize("per", ["sum", "token", "word"])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_prior_is_the_softmax_of_what_the_model_says(model, per, temperature):
    encoder = build(model, normalize_scores=per, prior_temperature=temperature)
    told = encoder.preprocess(OBS)["prior"]
    expected = (normalized(scored(encoder), per) / temperature).softmax(-1)
    torch.testing.assert_close(told.exp(), expected)
    assert told.dtype == torch.float32
    assert not torch.equal(told[0], told[1])


def test_each_argument_of_the_prior_counts(model):
    say = [
        build(model, **kwargs).preprocess(OBS)["prior"]
        for kwargs in ({}, {"normalize_scores": "sum"}, {"prior_temperature": 3.0})
    ]
    assert not torch.allclose(say[0], say[1])
    assert not torch.allclose(say[0], say[2])


def test_mixing_by_hand(model):
    encoder = build(model, weight=2.0, weight_end=1.0, kl_coef=0.3, kl_coef_end=0.1, fraction=0.5)
    x = {"prior": torch.tensor([[0.5, 0.25, 0.25]]).log()}
    logits = torch.tensor([[1.0, 0.0, -1.0]])
    e = np.exp([1.0, 0.0, -1.0]) * np.array([0.5, 0.25, 0.25]) ** 2
    mixed = encoder.mix(x, logits).softmax(-1)
    np.testing.assert_allclose(mixed[0].numpy(), e / e.sum(), rtol=1e-5)
    half = encoder.mix(x, logits, 0.5)
    torch.testing.assert_close(half, logits + x["prior"])
    for progress, weight, kl in ((0.25, 1.5, 0.2), (0.5, 1.0, 0.1), (1.0, 1.0, 0.1)):
        encoder.anneal(progress)
        assert (encoder.weight_now.item(), encoder.kl_now.item()) == pytest.approx((weight, kl))
    encoder.anneal(0.0)
    assert encoder.metrics()["guide/weight"] == 2.0
    assert encoder.metrics()["guide/kl_coef"] == pytest.approx(0.3)


def test_the_schedule_of_the_defaults(model):
    encoder = build(model)
    seen = []
    for progress in (0.0, 0.25, 0.5, 0.9):
        encoder.anneal(progress)
        seen.append(encoder.weight_now.item())
    assert seen == [1.0, 0.5, 0.0, 0.0]
    assert not encoder.pays
    assert "guide/kl_coef" not in encoder.metrics()
    assert build(model, fraction=1.0).begin == (1.0, 0.0)


def test_a_weight_of_nothing_leaves_logits_to_the_bit(model):
    encoder = build(model, weight=0.0, kl_coef=1.0)
    logits = torch.randn(2, 3)
    assert torch.equal(encoder.mix(encoder.preprocess(OBS), logits), logits)


def test_once_it_is_nothing_for_good_the_model_is_not_asked(model):
    encoder = build(model)
    encoder.anneal(0.6)
    x = encoder.preprocess(OBS)
    assert torch.equal(x["prior"], torch.zeros(2, 3))
    assert len(encoder.prior.cache) == 0
    text = build(model, EnvSpec(text_space(60), s.Discrete(3)), reader(model))
    text.anneal(1.0)
    assert text.preprocess(OBS["text"])["prior"].shape == (2, 3)
    for more in ({"weight_end": 0.1}, {"kl_coef_end": 0.1}):
        encoder = build(model, weight=0.0, **more)
        assert encoder.preprocess(OBS)["prior"].abs().sum() > 0


def reader(model):
    return partial(LLMEncoder, model=model, max_length=40)


def test_what_is_allowed_shares_what_is_not(model):
    encoder = build(model)
    x = {"prior": torch.tensor([[0.5, 0.25, 0.25]]).log()}
    mask = torch.tensor([[False, True, True]])
    among = encoder.log_prior(x, mask)
    torch.testing.assert_close(among.exp(), torch.tensor([[0.0, 0.5, 0.5]]))
    assert among.min() == LOWEST
    assert encoder.log_prior(x) is x["prior"]


def test_actions_that_do_not_exist_are_as_unlikely_as_can_be(model):
    space = s.Dict({"observation": text_space(60), "actions": text_space(60)})
    spec = EnvSpec(space, s.Discrete(4), "Listed")
    encoder = build(model, spec, partial(DictEncoder, default=reader(model)), {"actions": None})
    obs = {"observation": ("You see a wall", "go"), "actions": ("go to\npick up", "")}
    told = encoder.preprocess(obs)["prior"]
    assert told[0, 2:].tolist() == [LOWEST, LOWEST]
    assert told[0, :2].exp().sum() == pytest.approx(1.0)
    torch.testing.assert_close(told[1], torch.full((4,), 0.25).log())  # an episode that is over


class Loud(MLPEncoder):
    """Notes what it is asked."""

    def __init__(self, spec):
        super().__init__(spec, normalize=True)
        self.calls = []

    def observe(self, obs):
        self.calls.append("observe")
        super().observe(obs)

    def begin_rollout(self):
        self.calls.append("begin")

    def synchronize(self):
        self.calls.append("synchronize")

    def anneal(self, progress):
        self.calls.append(progress)

    def metrics(self):
        return {"llm/cache_size": -1.0}

    def collection_state(self):
        return {"own": 3}

    def load_collection_state(self, state):
        self.calls.append(state)


LOUD = partial(DictEncoder, encoders={"observation": Loud}, ignore=["text"])


def test_everything_reaches_the_encoder(model):
    both = build(model, encoder=LOUD)
    (loud,) = both.own.parts
    both.observe(OBS)
    both.begin_rollout()
    both.synchronize()
    both.anneal(0.5)
    assert loud.calls == [0.0, "observe", "begin", "synchronize", 0.5]
    both.anneal(0.0)
    x, raw = both.preprocess(OBS), both.preprocess_raw(OBS)
    again = both.standardized(raw)
    torch.testing.assert_close(again["own"]["observation"], x["own"]["observation"])
    assert not torch.equal(raw["own"]["observation"], x["own"]["observation"])
    assert again["prior"] is raw["prior"]
    assert torch.equal(both(x), x["own"]["observation"])
    assert both.out_dim == 2
    assert both.repeats() == {"own": {"observation": False}, "prior": True}
    told = both.metrics()
    assert told["llm/cache_size"] == -1.0  # the encoder's own
    assert told["llm/prior/cache_size"] == 2.0
    assert told["llm/prior/cache_hit_rate"] == 0.5
    both.preprocess(OBS)
    both.begin_rollout()  # what evaluation has looked up does not count
    assert "llm/prior/cache_hit_rate" not in both.metrics()
    state = both.collection_state()
    other = build(model, encoder=LOUD)
    other.load_collection_state(state)
    assert other.own.parts[0].calls[-1] == {"own": 3}
    assert len(other.prior.cache) == 2


def test_what_nobody_reads(model):
    space = s.Dict({**SPACE.spaces, "camera": BOX, "noise": BOX})
    spec = EnvSpec(space, s.Discrete(3))
    ignore = partial(DictEncoder, ignore=["text", "noise"])
    assert build(model, spec, ignore).unread() == {("noise",)}


def test_batched_is_single(model):
    encoder = build(model)
    both = encoder.preprocess(OBS)["prior"]
    for i in (1, 0):
        one = {"observation": OBS["observation"][i : i + 1], "text": OBS["text"][i : i + 1]}
        again = build(model).preprocess(one)["prior"]
        torch.testing.assert_close(again[0], both[i], atol=1e-5, rtol=1e-5)


def test_the_prior_learns_nothing_and_is_not_in_checkpoints(model):
    encoder = build(model, encoder=partial(DictEncoder, ignore=["text"],
                                           default=partial(MLPEncoder, hidden=(4,))))  # fmt: skip
    trained = [name for name, p in encoder.named_parameters() if p.requires_grad]
    assert trained
    assert all(name.startswith("own.") for name in trained)
    assert not [name for name in encoder.state_dict() if "backbone" in name and "weight" in name]
    encoder.anneal(0.25)
    other = build(model, encoder=partial(DictEncoder, ignore=["text"],
                                         default=partial(MLPEncoder, hidden=(4,))))  # fmt: skip
    other.load_state_dict(encoder.state_dict(), strict=False)
    assert other.weight_now.item() == 0.5


BAD = [
    ({"prior_args": {"tune": "lora"}}, "tune: lora would train it; set tune: frozen"),
    ({"prior_args": {"actions": ["a", "b"]}}, "2 texts for the 3 actions"),
    ({"spec": EnvSpec(SPACE, BOX)}, "a prior is for Discrete actions"),
    ({"spec": EnvSpec(SPACE, s.MultiDiscrete([2, 2]))}, "a prior is for Discrete actions"),
    ({"spec": EnvSpec(SPACE, s.MultiBinary(2))}, "a prior is for Discrete actions"),
    ({"spec": EnvSpec(BOX, s.Discrete(3))}, "wrap the environment in `Describe` with keep: true"),
    ({"normalize_scores": "mean"}, "normalize_scores='mean': use one of"),
    ({"prior_temperature": 0.0}, "prior_temperature must be at least"),
    ({"weight": -1.0}, "weight must be at least 0"),
    ({"weight_end": float("nan")}, "weight_end must be"),
    ({"kl_coef": -1.0}, "kl_coef must be"),
    ({"kl_coef_end": -1.0}, "kl_coef_end must be"),
    ({"fraction": 1.5}, "fraction must be between 0 and 1"),
]


@pytest.mark.parametrize(("kwargs", "said"), BAD)
def test_what_makes_no_sense_is_refused(model, kwargs, said):
    with pytest.raises(ConfigurationError, match=said):
        build(model, **kwargs)


def test_a_prior_scores_actions(model):
    with pytest.raises(ConfigurationError, match="says nothing of actions: give prior:"):
        GuidedEncoder(SPEC, VECTOR, VECTOR)
