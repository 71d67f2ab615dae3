"""What a changed language model says is standardised to where it was, whatever acts on it."""

from functools import partial

import gymnasium as gym
import pytest
import torch
from llm_tiny import tiny_model
from owned_models import SEEN, trained, words_model

from rl_lightning import (
    DQN,
    PPO,
    ActorCritic,
    Agent,
    DictEncoder,
    GeneratingPolicy,
    LLMEncoder,
    ReplayDataModule,
    TextActionEncoder,
)
from rl_lightning.agents.language_parts import features
from rl_lightning.cli import main
from rl_lightning.compress import quantise
from rl_lightning.core.types import EnvSpec

LM = ("--part", "language-model")
NODES = ("--method", "prune-nodes", "--share", "0.5", *LM)
WIDE = "encoder.backbone.model.encoder.layer.0.intermediate.dense"
TEXTS = [f"there is a {word} to the {way}" for word in ("wall", "box", "door") for way in
         ("north", "east", "south", "west")]  # fmt: skip


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return words_model(tmp_path_factory.mktemp("words"))


def compress(path, out, *words):
    own = ("--ckpt_path", str(path), "--out", str(out), "--observations", "20")
    main(["compress", *own, *words])
    return Agent.load_from_checkpoint(out).eval()


def moments(agent):
    buffers = agent.policy.named_buffers()
    return {n: b.clone() for n, b in buffers if n.endswith("norm.running.moments")}


def fed(agent, obs=TEXTS):
    """An agent whose features have been standardised by some observations."""
    for part in features(agent.eval().policy, [obs]):
        encoder = agent.policy.get_submodule(part)
        encoder.norm.update(features(agent.policy, [obs])[part])
    return agent


def standardised(agent, obs=TEXTS):
    return {
        name: agent.policy.get_submodule(name).norm(rows)
        for name, rows in features(agent.policy, [obs]).items()
    }


@pytest.mark.parametrize("tune", ["frozen", "full"])
@pytest.mark.parametrize("several", [False, True])
def test_every_encoder_of_a_policy_follows(words, tune, several):
    space, encoder, obs = gym.spaces.Text(40), partial(LLMEncoder, model=words, tune=tune), TEXTS
    if several:
        space = gym.spaces.Dict({"a": space, "b": space})
        encoder = partial(DictEncoder, encoders={"a": encoder, "b": encoder})
        obs = {"a": TEXTS, "b": TEXTS[::-1]}
    agent = fed(PPO(EnvSpec(space, gym.spaces.Discrete(2), "probe"), encoder), obs)
    before, raw = standardised(agent, obs), features(agent.policy, [obs])
    assert len(before) == 1 + several
    for layer in [m for n, m in agent.policy.named_modules() if n.endswith("layer.1.output.dense")]:
        with torch.no_grad():
            layer.bias += 3.0  # behind it a LayerNorm, which is not asked
            layer.weight *= 0.5
    for part in agent.modules():
        if hasattr(part, "forget"):
            part.forget()
    now = features(agent.policy, [obs])
    assert all(not torch.allclose(now[n], raw[n], atol=1e-2) for n in raw)
    shifted = standardised(agent, obs)
    agent.follow_features(raw, now)
    for name, after in standardised(agent, obs).items():
        moved = (shifted[name].mean(0) - before[name].mean(0)).abs().mean()
        assert (after.mean(0) - before[name].mean(0)).abs().max() < 0.01 < moved


def test_a_policy_that_writes_has_its_critics_features_followed(tmp_path):
    model = tiny_model("llama", tmp_path / "llama", layers=2)
    encoder = partial(TextActionEncoder, model=model, tune="full", actions=["north", "east"],
                      max_length=40)  # fmt: skip
    network = partial(GeneratingPolicy, max_new_tokens=2)
    path = trained(lambda s: PPO(s, encoder, network), tmp_path / "a.ckpt", frames=48)
    before = moments(Agent.load_from_checkpoint(path))
    after = moments(compress(path, tmp_path / "b.ckpt", *NODES))
    assert before["encoder.norm.running.moments"][0, 0] > 0
    assert not torch.equal(
        before["encoder.norm.running.moments"], after["encoder.norm.running.moments"]
    )


def test_targets_follow_too(words, tmp_path):
    data = ReplayDataModule(
        env="text_probes:TextNamed-v0", num_envs=2, warmup_frames=16, frames_per_epoch=16,
        total_frames=48, batch_size=8, val_episodes=2,
    )  # fmt: skip
    encoder = partial(LLMEncoder, model=words, tune="full")
    path = trained(partial(DQN, encoder=encoder), tmp_path / "a.ckpt", data)
    before = moments(Agent.load_from_checkpoint(path))
    agent = compress(path, tmp_path / "b.ckpt", *NODES)
    after = moments(agent)
    assert after
    assert all(not torch.equal(after[n], before[n]) for n in after)
    target = dict(agent.target.named_buffers())
    for name, value in after.items():
        assert torch.equal(target.get(name, value), value)


def test_nodes_of_one_of_several_own_copies(words, tmp_path):
    encoder = partial(LLMEncoder, model=words, tune="full")
    network = partial(ActorCritic, share_encoder=False)
    path = trained(lambda s: PPO(s, encoder, network), tmp_path / "a.ckpt")
    agent = compress(path, tmp_path / "b.ckpt", *NODES, "--layers", f"policy.{WIDE}")
    left = {n: part.out_features for n, part in agent.policy.named_modules()
            if n.endswith("intermediate.dense")}  # fmt: skip
    assert left.pop(WIDE) == 16
    assert list(left.values()) == [32] * 3


def test_mistakes_name_the_layers_as_they_are_named(words, tmp_path, capsys):
    path = trained(lambda s: PPO(s, partial(LLMEncoder, model=words)), tmp_path / "a.ckpt")

    def refused(words, source=path):
        with pytest.raises(SystemExit):
            compress(source, tmp_path / "c.ckpt", *NODES, "--layers", words)
        return capsys.readouterr().err

    assert f"policy.{WIDE}" in refused(f"policy.{WIDE[:-5]}s")  # offered as it can be given
    assert "only linear and convolutional" in refused("policy.encoder.backbone")
    compress(path, tmp_path / "b.ckpt", "--method", "quantise", "--bits", "8", *LM)
    assert "prune first, then quantise" in refused(f"policy.{WIDE}", tmp_path / "b.ckpt")


def test_nothing_is_read_where_nothing_is_standardised(words):
    encoder = partial(LLMEncoder, model=words, standardize=False)
    agent = PPO(EnvSpec(gym.spaces.Text(40), gym.spaces.Discrete(2), "probe"), encoder).eval()
    agent.encoder.preprocess = None
    assert features(agent.policy, [[SEEN]]) == {}
    agent.compress(partial(quantise, bits=8, layers=["policy.actor"]))
    agent.follow_features({}, {})
