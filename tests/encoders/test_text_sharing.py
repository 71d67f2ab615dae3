"""Encoders of one policy have one frozen model and one cache; two agents have nothing in common."""

import copy
import io
import pickle
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from llm_tiny import tiny_model
from training import fit

from rl_lightning import PPO, ActorCritic, DictEncoder, LLMEncoder, MLPEncoder
from rl_lightning.core.sharing import shared, sharing
from rl_lightning.core.types import EnvSpec
from rl_lightning.data import RolloutDataModule
from rl_lightning.data.resume.remembered import inside
from rl_lightning.llm import backbone
from rl_lightning.nn.target import make_target

s = gym.spaces
TWO = s.Dict({"goal": s.Text(99), "number": s.Box(-1.0, 1.0, (1,)), "seen": s.Text(99)})
SPEC = EnvSpec(TWO, s.Discrete(2), "Two-v0")
OBS = {
    "goal": ("go to the red ball", "go"),
    "number": np.array([[0.5], [-0.5]], np.float32),
    "seen": ("go", "You carry a blue key"),
}


class Two(gym.Env):
    """Two texts that repeat, and a number to learn from."""

    observation_space, action_space = TWO, s.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.observe(), {}

    def step(self, action):
        self.steps += 1
        return self.observe(), float(action == self.steps % 2), self.steps == 9, False, {}

    def observe(self):
        i = int(self.np_random.integers(40))
        number = np.array([self.steps / 10], np.float32)
        return {"goal": f"go to {i % 7}", "number": number, "seen": f"a {'wall ' * (i % 5)}{i}"}


if "Two-v0" not in gym.registry:
    gym.register("Two-v0", Two)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    return {kind: tiny_model(kind, folder / kind) for kind in ("bert", "gpt2")}


@pytest.fixture
def loads(monkeypatch):
    """The models loaded from disk, in order."""
    loaded = []
    load = backbone.load_backbone

    def counted(model, **kwargs):
        loaded.append(model)
        return load(model, **kwargs)

    monkeypatch.setattr(backbone, "load_backbone", counted)
    return loaded


def two(tiny, goal=None, seen=None, **both):
    both = {"model": tiny["bert"], **both}
    encoders = {
        "goal": partial(LLMEncoder, **both, **(goal or {})),
        "seen": partial(LLMEncoder, **both, **(seen or {})),
    }
    return partial(DictEncoder, encoders=encoders, default=partial(MLPEncoder, hidden=(4,)))


def texts(encoder):
    parts = dict(encoder._named())
    return parts["goal"], parts["seen"]


def saved(state):
    file = io.BytesIO()
    torch.save(inside(state), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# --- inside one agent -----------------------------------------------------------------------------


def test_two_entries_load_and_run_the_model_once(tiny, loads):
    encoder = two(tiny)(SPEC)
    goal, seen = texts(encoder)
    assert len(loads) == 1
    assert goal.backbone.model is seen.backbone.model
    assert goal.cache is seen.cache
    runs = []
    goal.backbone.model.register_forward_hook(lambda *_: runs.append(1))
    apart = [LLMEncoder(SPEC.with_observation_space(TWO["goal"]), tiny["bert"]) for _ in OBS]
    x = encoder.preprocess(OBS)
    assert len(runs) == 2  # "go" of the second entry was known
    assert torch.allclose(x["goal"], apart[0].preprocess(OBS["goal"]), atol=1e-5)
    assert torch.allclose(x["seen"], apart[1].preprocess(OBS["seen"]), atol=1e-5)
    assert len(goal.cache) == 3


def test_metrics_of_a_common_cache_are_of_all_texts(tiny):
    encoder = two(tiny)(SPEC)
    encoder.preprocess(OBS)
    assert encoder.metrics() == {"llm/cache_size": 3.0, "llm/cache_hit_rate": 0.25}
    encoder.preprocess(OBS)
    assert encoder.metrics() == {"llm/cache_size": 3.0, "llm/cache_hit_rate": 1.0}


@pytest.mark.parametrize("arguments", [{"max_length": 9}, {"pooling": "cls"}, {"cache_size": 7}])
def test_other_arguments_mean_the_same_model_and_another_cache(tiny, loads, arguments):
    encoder = two(tiny, seen=arguments)(SPEC)
    goal, seen = texts(encoder)
    assert len(loads) == 1
    assert goal.backbone.model is seen.backbone.model
    assert goal.cache is not seen.cache
    encoder.preprocess(OBS)
    encoder.preprocess({**OBS, "goal": OBS["goal"] * 2})
    assert encoder.metrics() == {
        "llm/goal/cache_size": 2.0,
        "llm/goal/cache_hit_rate": 4 / 6,
        "llm/seen/cache_size": 2.0,
        "llm/seen/cache_hit_rate": 0.5,
    }


def test_other_models_are_loaded_and_reported_one_by_one(tiny, loads):
    encoder = two({"bert": tiny["bert"]}, seen={"layers": 2})(SPEC)
    assert len(loads) == 2
    assert set(encoder.metrics()) == {"llm/goal/cache_size", "llm/seen/cache_size"}
    # Random weights are another model each.
    goal, seen = texts(two(tiny, pretrained=False)(SPEC))
    assert not torch.equal(*(next(each.parameters()) for each in (goal, seen)))
    assert goal.cache is not seen.cache


def test_metrics_of_nested_dictionaries_say_where(tiny):
    outer = s.Dict({"inner": TWO, "more": s.Text(9)})
    encoders = {
        "inner": two(tiny, seen={"pooling": "cls"}),
        "more": partial(LLMEncoder, model=tiny["gpt2"]),
    }
    encoder = DictEncoder(EnvSpec(outer, s.Discrete(2)), encoders)
    assert set(encoder.metrics()) == {
        "llm/goal/cache_size",
        "llm/seen/cache_size",
        "llm/cache_size",
    }


def test_an_actor_and_a_critic_of_its_own_have_one_model_and_one_cache(tiny, loads):
    agent = PPO(SPEC, two(tiny), partial(ActorCritic, share_encoder=False))
    assert len(agent.encoders) == 2
    assert len(loads) == 1
    every = [each for encoder in agent.encoders for each in texts(encoder)]
    assert len({id(each.backbone.model) for each in every}) == 1
    assert len({id(each.cache) for each in every}) == 1
    assert len({id(each.norm) for each in every}) == 4
    agent.observe(OBS)
    reports = [encoder.metrics() for encoder in agent.encoders]
    assert reports == [{"llm/cache_size": 3.0, "llm/cache_hit_rate": 5 / 8}, {}]


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_adapters_are_apart_and_the_weights_below_them_are_not(tiny, loads, kind):
    spec = SPEC.with_observation_space(TWO["goal"])
    make = partial(LLMEncoder, model=tiny[kind], tune="lora", standardize=False)
    agent = PPO(spec, make, partial(ActorCritic, share_encoder=False))
    actor, critic = agent.encoders
    assert len(loads) == 1
    for (name, p), (_, q) in zip(actor.named_parameters(), critic.named_parameters(), strict=True):
        assert (p.data_ptr() == q.data_ptr()) == ("lora_" not in name), name
    x = actor.preprocess(OBS["goal"])
    before = critic(x).detach()
    torch.testing.assert_close(actor(x).detach(), before)
    with torch.no_grad():
        for p in actor.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p))
    assert torch.equal(critic(x), before)
    assert not torch.allclose(actor(x), before)


def test_a_fully_tuned_model_is_everyones_own(tiny, loads):
    goal, seen = texts(two(tiny, tune="full")(SPEC))
    assert len(loads) == 2
    assert not {id(p) for p in goal.parameters()} & {id(p) for p in seen.parameters()}


def test_checkpoints_are_as_before_sharing(tiny):
    encoder = two(tiny)(SPEC)
    apart = [LLMEncoder(SPEC.with_observation_space(TWO["goal"]), tiny["bert"]) for _ in "12"]
    expected = {f"parts.{2 * i}.{key}" for i, one in enumerate(apart) for key in one.state_dict()}
    expected |= {"parts.1.trunk.0.weight", "parts.1.trunk.0.bias"}
    state = saved(encoder.state_dict())
    assert set(state) == expected
    two(tiny)(SPEC).load_state_dict(state, strict=True)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))])
def test_copies_of_a_policy_go_on_sharing(tiny, how):
    encoder = two(tiny)(SPEC)
    goal, seen = texts(how(encoder))
    assert goal.backbone.model is seen.backbone.model
    assert goal.cache is seen.cache
    assert goal.cache is not texts(encoder)[0].cache
    assert goal.preprocess(OBS["goal"]).shape == (2, 32)


def test_a_target_network_has_the_same_model(tiny):
    agent = PPO(SPEC, two(tiny))
    target = make_target(agent.policy)
    for online, copied in zip(texts(agent.encoder), texts(target.encoder), strict=True):
        assert online is copied


# --- different agents -----------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["built", "copied"])
def test_moving_one_agent_leaves_another_where_it_is(tiny, how):
    one = PPO(SPEC, make := two(tiny))
    other = PPO(SPEC, make) if how == "built" else copy.deepcopy(one)
    one.to("meta")
    assert {p.device.type for p in one.parameters()} == {"meta"}
    assert {p.device.type for p in other.parameters()} == {"cpu"}
    other.encoder.preprocess(OBS)
    assert len(texts(one.encoder)[0].cache) == 0


def test_encoders_outside_of_any_policy_share_nothing(tiny, loads):
    spec = SPEC.with_observation_space(TWO["goal"])
    one, other = LLMEncoder(spec, tiny["bert"]), LLMEncoder(spec, tiny["bert"])
    assert len(loads) == 2
    assert one.backbone.model is not other.backbone.model
    assert one.cache is not other.cache


def test_sharing_ends_with_its_block():
    with sharing():
        with sharing():
            inner = shared("key", list)
        assert shared("key", list) is inner
        assert shared("other", list) is not inner
        assert shared("key", list, twin=list) is not inner
    assert shared("key", list) is not inner
    with sharing():
        assert shared("key", list) is not inner
    with pytest.raises(ZeroDivisionError), sharing():
        raise ZeroDivisionError
    assert shared("key", list) is not shared("key", list)


# --- going on -------------------------------------------------------------------------------------


def test_a_common_cache_is_saved_once_and_restored(tiny):
    one, other = two(tiny)(SPEC), two(tiny)(SPEC)
    x = one.preprocess(OBS)
    state = saved(one.collection_state())
    assert len(state["goal"]["remembered"]["keys"]) == 3
    assert state["seen"] == {}
    state["goal"]["remembered"]["rows"] += 1  # shows where a vector came from
    other.load_collection_state(state)
    y = other.preprocess(OBS)
    assert all(torch.equal(y[name], x[name] + 1) for name in ("goal", "seen"))
    assert other.metrics()["llm/cache_hit_rate"] == 5 / 8


def test_two_caches_of_an_earlier_version_stay_two(tiny):
    """Their vectors may differ in the last bits, so the run goes on with both."""
    spec = SPEC.with_observation_space(TWO["goal"])
    apart = {name: LLMEncoder(spec, tiny["bert"]) for name in ("goal", "seen")}
    for shift, (name, each) in enumerate(apart.items()):
        rows = each._read_frozen(["go", name]) + shift
        each.cache.get(("go", name), lambda _, rows=rows: rows)
    state = {name: saved(each.collection_state()) for name, each in apart.items()}
    for each in state.values():
        del each["split_special_tokens"]
        remembered = each.pop("remembered")
        each |= {"texts": remembered["keys"], "vectors": remembered["rows"]}
    encoder = two(tiny)(SPEC)
    for _ in range(2):
        encoder.load_collection_state(state)
        goal, seen = texts(encoder)
        assert goal.cache is not seen.cache
        assert goal.cache.max_bytes == seen.cache.max_bytes == 1_000_000_000
        assert goal.backbone.model is seen.backbone.model
        for name, each in (("goal", goal), ("seen", seen)):
            expected = apart[name].preprocess(("go", name))
            assert torch.equal(each.preprocess(("go", name)), expected)
        encoder.metrics()
        state = {k: saved(v) for k, v in encoder.collection_state().items()}
        encoder = two(tiny)(SPEC)


@pytest.mark.parametrize("seen", [{}, {"pooling": "cls"}])
def test_a_resumed_run_with_two_texts_is_the_uninterrupted_one(tiny, tmp_path, seen):
    def train(epochs, folder, ckpt_path=None):
        torch.manual_seed(5)
        data = RolloutDataModule(
            "Two-v0", 4, rollout_steps=8, minibatch_size=16, passes=1, total_frames=96, seed=2
        )
        network = partial(ActorCritic, share_encoder=False)
        agent = PPO(data.spec, two(tiny, seen=seen, max_length=16, cache_size=30), network)
        saver = ModelCheckpoint(folder, "last", save_on_train_epoch_end=True)
        options = {"max_epochs": epochs, "callbacks": [saver], "enable_checkpointing": True}
        fit(agent, data, ckpt_path, **options)
        return torch.load(folder / "last.ckpt", weights_only=True)

    whole = train(3, tmp_path / "whole")
    train(1, tmp_path / "half")
    resumed = train(3, tmp_path / "rest", tmp_path / "half" / "last.ckpt")
    assert whole["state_dict"].keys() == resumed["state_dict"].keys()
    for name, value in whole["state_dict"].items():
        if torch.is_tensor(value):
            assert torch.equal(value, resumed["state_dict"][name]), name
