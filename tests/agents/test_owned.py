"""Language models whose weights are part of an agent's checkpoint."""

import argparse
import json
import sys
from functools import partial

import gymnasium as gym
import pytest
import torch
from llm_tiny import tiny_model
from owned_models import NAMED, SEEN, WORDS, trained, words_model
from training import make_trainer

from rl_lightning import (
    DQN,
    PPO,
    Agent,
    DictEncoder,
    GuidedEncoder,
    LLMEncoder,
    ReplayDataModule,
    RolloutDataModule,
    ScoringPolicy,
    TextActionEncoder,
)
from rl_lightning.agents.load import build_agent
from rl_lightning.agents.owned import own_language_model, the_language_model, whole_state
from rl_lightning.cli import main
from rl_lightning.cli.compress_language import check_language_model, operators
from rl_lightning.compress import fake_quantise, harden, prune_heads, prune_layers, quantise
from rl_lightning.compress.packed import PackedLayer
from rl_lightning.core.checkpoints import read_checkpoint
from rl_lightning.core.errors import ConfigurationError
from rl_lightning.core.types import EnvSpec
from rl_lightning.llm import Backbone

TEXTS = [SEEN, "There is a wall to the east."]
USED = [*TEXTS, "north", "east"]
TEXT = EnvSpec(gym.spaces.Text(40), gym.spaces.Discrete(2), "probe")


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return words_model(tmp_path_factory.mktemp("words"))


def checkpoint_of(agent):
    """As `trainer.save_checkpoint` writes it, without optimizers."""
    checkpoint = {"state_dict": agent.state_dict(), "hyper_parameters": dict(agent.hparams)}
    agent.on_save_checkpoint(checkpoint)
    return checkpoint


def rebuilt(checkpoint):
    return build_agent(Agent, checkpoint, None, (), {}).eval()


def owned(agent, folder, used=None):
    return rebuilt(own_language_model(agent, checkpoint_of(agent), folder, used))


def said(agent, texts=TEXTS):
    with torch.no_grad():
        return agent.eval().inspect(agent.preprocess(texts))["probabilities"]


def models(agent):
    return [part for part in agent.modules() if isinstance(part, Backbone)]


@pytest.mark.parametrize(
    ("tune", "used"),
    [("frozen", None), ("frozen", USED), ("lora", USED), ("full", USED)],
    ids=["frozen", "frozen, cut", "lora, cut", "full, cut"],
)
def test_it_acts_as_before_and_trains_what_it_trained(words, tmp_path, tune, used):
    agent = PPO(TEXT, partial(LLMEncoder, model=words, tune=tune, layers=1))
    with torch.no_grad():
        for p in agent.parameters():
            p.add_(0.1 * torch.randn_like(p) if p.requires_grad else 0.0)
    new = owned(agent, tmp_path / "own", used)
    assert torch.equal(said(new), said(agent))
    (after,) = models(new)
    assert not after.reloadable
    assert after.tune == tune
    assert len(after.tokens.tokenizer) == (len(WORDS) if used is None else 13)
    learned = {name: p.requires_grad for name, p in agent.named_parameters()}
    assert {name: p.requires_grad for name, p in new.named_parameters()} == learned
    assert after.get_extra_state() == {}
    # And what it is saved as is it again, without the model that it was made of.
    again = rebuilt(checkpoint_of(new))
    assert torch.equal(said(again), said(new))
    assert str(again.hparams).count(words) == 0
    assert torch.equal(said(agent), said(owned(agent, tmp_path / "twice")))


def test_the_weights_are_in_the_state_dict_and_nowhere_else(words, tmp_path):
    agent = PPO(TEXT, partial(LLMEncoder, model=words))
    new = owned(agent, tmp_path / "own")
    state = new.state_dict()
    assert state.keys() == whole_state(agent).keys() > agent.state_dict().keys()
    assert not [f for f in (tmp_path / "own").iterdir() if f.suffix in (".safetensors", ".bin")]
    # Another agent of the same folder has other weights until it is told.
    other = build_agent(Agent, {**checkpoint_of(new), "state_dict": {}}, False, (), {})
    assert not torch.equal(said(other), said(new))
    other.load_state_dict(state)
    assert torch.equal(said(other), said(new))


# --- what it said before --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "operator",
    [
        partial(quantise, bits=2, layers=["policy.encoder.backbone"]),
        lambda policy: prune_layers(policy, [1]),
        lambda policy: prune_heads(policy, 0.5),
    ],
)
def test_no_feature_of_the_former_weights_is_served(words, tmp_path, operator):
    new = owned(PPO(TEXT, partial(LLMEncoder, model=words)), tmp_path / "own")
    former, print_ = said(new), new.encoder._fingerprint()
    remembered = new.collection_state()
    assert len(new.encoder.cache) == 2
    new.compress(operator)
    assert not len(new.encoder.cache)
    assert not torch.equal(said(new), former)
    assert new.encoder._fingerprint() != print_
    with pytest.warns(UserWarning, match="belongs to another model"):
        new.load_collection_state(remembered)
    assert not len(new.encoder.cache)


def test_a_cut_vocabulary_has_another_fingerprint(words, tmp_path):
    agent = PPO(TEXT, partial(LLMEncoder, model=words))
    whole, cut = owned(agent, tmp_path / "whole"), owned(agent, tmp_path / "cut", USED)
    remembered = whole.collection_state()
    with pytest.warns(UserWarning, match="belongs to another model"):
        cut.load_collection_state(remembered)


def test_rows_on_disk_are_left(words, tmp_path, monkeypatch):
    monkeypatch.setenv("RL_LIGHTNING_CACHE", str(tmp_path / "cache"))
    agent = PPO(TEXT, partial(LLMEncoder, model=words, keep_on_disk=True))
    before = said(agent)
    new = owned(agent, tmp_path / "own")
    assert not new.encoder.keep_on_disk
    new.compress(partial(quantise, bits=2, layers=["policy.encoder.backbone"]))
    assert not torch.equal(said(new), before)


# --- tuned models ---------------------------------------------------------------------------------


def test_adapters_train_on_around_packed_weights(words, tmp_path):
    path = trained(lambda s: PPO(s, partial(LLMEncoder, model=words, tune="lora")), tmp_path / "a")
    compress(path, tmp_path / "b", "quantise", "--bits", "8", "--part", "language-model")
    agent = Agent.load_from_checkpoint(tmp_path / "b")
    packed = [n for n, part in agent.named_modules() if isinstance(part, PackedLayer)]
    assert len(packed) == 3 + 2 * 6  # embeddings and layers
    assert not any("lora_" in name for name in packed)
    before = {n: t.clone() for n, t in agent.state_dict().items() if torch.is_tensor(t)}
    train_on(agent, tmp_path / "b")
    changed = {n for n, t in agent.state_dict().items() if n in before and (t != before[n]).any()}
    inside = {name for name in changed if ".backbone." in name}
    assert inside
    assert all(".lora_" in name for name in inside)
    for method in ("prune-heads", "prune-layers", "prune-nodes", "quantise-aware"):
        with pytest.raises(ConfigurationError, match=r"tune: lora"):
            check_language_model(agent, argparse.Namespace(method=method))


def test_all_weights_train_on_under_rounding_and_with_their_moments(words, tmp_path):
    path = trained(lambda s: PPO(s, partial(LLMEncoder, model=words, tune="full")), tmp_path / "a")
    compress(path, tmp_path / "b", "cut-vocabulary")
    agent = Agent.load_from_checkpoint(tmp_path / "b")
    states = [read_checkpoint(p)["optimizer_states"][0]["state"] for p in (path, tmp_path / "b")]
    parameters = [p for g in agent.configure_optimizers().param_groups for p in g["params"]]
    assert [s["exp_avg"].shape for s in states[1].values()] == [p.shape for p in parameters]
    (table,) = [i for i, p in enumerate(parameters) if len(p) == 13 and p.ndim == 2]
    vocabulary = the_language_model(agent).tokens.tokenizer.get_vocab()
    moments = torch.stack([states[0][table]["exp_avg"][WORDS.index(w)] for w in
                           sorted(vocabulary, key=vocabulary.get)])  # fmt: skip
    assert torch.equal(states[1][table]["exp_avg"], moments)
    assert moments.any()
    aware = ("quantise-aware", "--bits", "4", "--part", "language-model")
    compress(tmp_path / "b", tmp_path / "c", *aware)
    agent = Agent.load_from_checkpoint(tmp_path / "c")
    before = the_language_model(agent).model.get_input_embeddings().weight.clone()
    train_on(agent, tmp_path / "c")
    after = the_language_model(agent).model.get_input_embeddings().weight
    assert not torch.equal(after, before)
    former = said(agent)
    agent.compress(harden)
    assert torch.equal(said(agent), former)


def test_moments_are_cut_with_the_nodes(words, tmp_path):
    path = trained(lambda s: PPO(s, partial(LLMEncoder, model=words, tune="full")), tmp_path / "a")
    nodes = ("--share", "0.5", "--part", "language-model")
    compress(path, tmp_path / "b", "prune-nodes", *nodes)
    agents = [Agent.load_from_checkpoint(p) for p in (path, tmp_path / "b")]
    (record,) = agents[1].compression
    moments = []
    for agent, file in zip(agents, (path, tmp_path / "b"), strict=True):
        state = read_checkpoint(file)["optimizer_states"][0]["state"]
        names = {id(p): n for n, p in agent.named_parameters()}
        parameters = [p for g in agent.configure_optimizers().param_groups for p in g["params"]]
        moments.append({names[id(p)]: state[i]["exp_avg"] for i, p in enumerate(parameters)})
    (weight,) = [n for n in record["tensors"] if n.endswith("layer.0.output.dense.weight")]
    kept = record["tensors"][weight]["keep"][1]
    assert len(kept) == 16
    assert torch.equal(moments[1][weight], moments[0][weight][:, kept])
    assert moments[1][weight].any()
    train_on(agents[1], tmp_path / "b")


def compress(path, out, method, *words):
    own = ("--ckpt_path", str(path), "--out", str(out), "--observations", "20")
    main(["compress", *own, "--method", method, *words])


def train_on(agent, path, data=RolloutDataModule):
    data = data.load_from_checkpoint(path)
    data.total_frames = 64
    make_trainer().fit(agent, data, ckpt_path=path)


# --- several that read with one -------------------------------------------------------------------

PAIR = EnvSpec(
    gym.spaces.Dict({"a": gym.spaces.Text(40), "b": gym.spaces.Text(40)}),
    gym.spaces.Discrete(2),
    "probe",
)


@pytest.mark.parametrize("tune", ["frozen", "lora"])
def test_encoders_that_shared_a_model_share_it_again(words, tmp_path, tune):
    part = partial(LLMEncoder, model=words, tune=tune)
    agent = PPO(PAIR, partial(DictEncoder, encoders={"a": part, "b": part}))
    obs = {"a": TEXTS, "b": TEXTS[::-1]}
    before = said(agent, obs)
    new = owned(agent, tmp_path / "own", USED)
    assert torch.equal(said(new, obs), before)
    one, two = models(new)
    assert (one.model is two.model) == (tune == "frozen")
    tables = [m.model.get_input_embeddings().weight for m in (one, two)]
    assert tables[0] is tables[1]
    adapters = [n for n, _ in new.named_modules() if n.endswith(("lora_A", "lora_B"))]
    new.compress(partial(quantise, bits=8, layers=["policy.encoder"], keep=adapters))
    again = rebuilt(checkpoint_of(new))
    assert torch.equal(said(again, obs), said(new, obs))
    one, two = (m.model.get_input_embeddings().codes for m in models(again))
    assert one.data_ptr() == two.data_ptr()  # a file has them once


def test_what_is_shared_is_compressed_once(words, tmp_path):
    part = partial(LLMEncoder, model=words)
    new = owned(PPO(PAIR, partial(DictEncoder, encoders={"a": part, "b": part})), tmp_path / "own")
    given = argparse.Namespace(method="quantise", bits=8, layers=None, group_size=None)
    for operator in operators(new, given):
        new.compress(lambda policy, do=operator: do(policy, None, None))
    (record,) = new.compression
    assert len(record["layers"]) == 3 + 2 * 6
    assert all(name.startswith("policy.encoder.parts.0.backbone.") for name in record["layers"])


def test_nodes_that_are_shared_go_once(words, tmp_path):
    part = partial(LLMEncoder, model=words)
    new = owned(PPO(PAIR, partial(DictEncoder, encoders={"a": part, "b": part})), tmp_path / "own")
    pruned(new, 0.5)
    assert [len(record["nodes_left"]) for record in new.compression] == [2]
    one, two = models(new)
    assert one.model is two.model
    assert one.model.encoder.layer[0].intermediate.dense.out_features == 16
    again, obs = rebuilt(checkpoint_of(new)), {"a": TEXTS, "b": TEXTS[::-1]}
    assert torch.equal(said(again, obs), said(new, obs))


def pruned(agent, share):
    """Take nodes out of an agent's language model, as the command line does."""
    given = argparse.Namespace(method="prune-nodes", share=share, layers=None)
    for operator in operators(agent, given):
        agent.compress(lambda policy, do=operator: do(policy, None, None))


def test_several_language_models_are_refused(words, tmp_path):
    other = tiny_model("bert", tmp_path / "other", layers=1)
    parts = {"a": partial(LLMEncoder, model=words), "b": partial(LLMEncoder, model=other)}
    agent = PPO(PAIR, partial(DictEncoder, encoders=parts))
    with pytest.raises(ConfigurationError, match=r"several language models \(model=.*words"):
        own_language_model(agent, checkpoint_of(agent), tmp_path / "own")
    parts["b"] = partial(LLMEncoder, model=words, layers=1)
    agent = PPO(PAIR, partial(DictEncoder, encoders=parts))
    with pytest.raises(ConfigurationError, match="layers=1"):
        the_language_model(agent)
    assert not (tmp_path / "own").exists()


def test_targets_read_with_the_same_model(words, tmp_path):
    data = ReplayDataModule(
        env=NAMED, num_envs=2, warmup_frames=16, frames_per_epoch=16, total_frames=32,
        batch_size=8, val_episodes=2,
    )  # fmt: skip
    make = lambda spec: DQN(spec, partial(LLMEncoder, model=words))  # noqa: E731
    path = trained(make, tmp_path / "a", data)
    compress(path, tmp_path / "b", "quantise", "--bits", "8", "--part", "language-model")
    agent = Agent.load_from_checkpoint(tmp_path / "b")
    assert agent.target.encoder is agent.policy.encoder
    train_on(agent, tmp_path / "b", data=ReplayDataModule)
    assert agent.frames == 64


# --- scored actions -------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "tune"), [("gpt2", "lora"), ("t5", "frozen")])
def test_actions_are_scored_in_the_kept_tokens(tmp_path, kind, tune):
    model = tiny_model(kind, tmp_path / kind, layers=1)
    encoder = partial(TextActionEncoder, model=model, tune=tune, actions=["north", "east"])
    agent = PPO(TEXT, encoder, ScoringPolicy)
    ids = agent.encoder.choices.fixed
    used = {token for row in ids for token in row} | agent.encoder.choices.prompter.own_ids()
    new = owned(agent, tmp_path / "own", [*TEXTS, *used])
    tokens = [a.encoder.backbone.tokens.tokenizer for a in (agent, new)]
    assert len(tokens[1]) < len(tokens[0])
    names = [[t.convert_ids_to_tokens(i) for i in a.encoder.choices.fixed]
             for t, a in zip(tokens, (agent, new), strict=True)]  # fmt: skip
    assert names[0] == names[1]
    # What the prompt is read as is the same; log p is that among fewer tokens.
    x, y = (a.preprocess(TEXTS) for a in (agent, new))
    torch.testing.assert_close(new.encoder(y), agent.encoder(x))
    assert torch.equal(said(rebuilt(checkpoint_of(new))), said(new))


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_models_that_write_lose_nodes(tmp_path, kind):
    model = tiny_model(kind, tmp_path / kind, layers=2)
    encoder = partial(TextActionEncoder, model=model, actions=["north", "east"])
    new = owned(PPO(TEXT, encoder, ScoringPolicy), tmp_path / "own")
    before, whole = said(new), sum(p.numel() for p in models(new)[0].parameters())
    pruned(new, 0.5)
    assert sum(p.numel() for p in models(new)[0].parameters()) < whole
    assert not torch.equal(said(new), before)
    assert torch.equal(said(rebuilt(checkpoint_of(new))), said(new))


def test_layers_of_another_kind_have_no_nodes_to_take_out(tmp_path):
    model = tiny_model("gpt2", tmp_path / "gpt2", layers=1)
    encoder = partial(TextActionEncoder, model=model, actions=["north", "east"])
    new = owned(PPO(TEXT, encoder, ScoringPolicy), tmp_path / "own")
    with pytest.raises(ConfigurationError, match="no layer can be pruned by nodes"):
        pruned(new, 0.5)


def test_a_guide_is_found_inside_its_encoder(tmp_path):
    from rl_lightning import MLPEncoder

    model = tiny_model("gpt2", tmp_path / "gpt2", layers=1)
    space = gym.spaces.Dict({"view": gym.spaces.Text(40), "n": gym.spaces.Box(0, 1, (2,))})
    spec = EnvSpec(space, gym.spaces.Discrete(2), "probe")
    prior = partial(TextActionEncoder, model=model, actions=["north", "east"])
    own = partial(DictEncoder, encoders={"n": MLPEncoder}, ignore=["view"])
    agent = PPO(spec, partial(GuidedEncoder, encoder=own, prior=prior))
    new = owned(agent, tmp_path / "own")
    obs = {"view": TEXTS, "n": torch.rand(2, 2).numpy()}
    assert torch.equal(said(new, obs), said(agent, obs))
    assert not models(new)[0].reloadable


# --- strangers ------------------------------------------------------------------------------------


def test_a_strangers_folder_runs_no_code(words, tmp_path, monkeypatch):
    agent = PPO(TEXT, partial(LLMEncoder, model=words))
    checkpoint = own_language_model(agent, checkpoint_of(agent), tmp_path / "own")
    mark = tmp_path / "mark"
    (tmp_path / "own" / "evil.py").write_text(f"open({str(mark)!r}, 'w')\nclass Model: pass\n")
    for name, kind in (("config", "AutoModel"), ("config", "AutoConfig"),
                       ("tokenizer_config", "AutoTokenizer")):  # fmt: skip
        file = tmp_path / "own" / f"{name}.json"
        content = json.loads(file.read_text())
        content.setdefault("auto_map", {})[kind] = "evil.Model"
        file.write_text(json.dumps(content))
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert torch.equal(said(rebuilt(checkpoint)), said(agent))
    assert not mark.exists()


@pytest.mark.parametrize("operator", ["prune_layers", "prune_heads", "quantise"])
def test_records_of_a_model_that_is_loaded_by_name_are_refused(words, tmp_path, operator):
    agent = PPO(TEXT, partial(LLMEncoder, model=words))
    new = owned(agent, tmp_path / "own")
    new.compress(
        {
            "prune_layers": lambda policy: prune_layers(policy, [1]),
            "prune_heads": lambda policy: prune_heads(policy, 0.5),
            "quantise": partial(quantise, bits=8, layers=["policy.encoder.backbone"]),
        }[operator]
    )
    forged = {**checkpoint_of(agent), "compression": new.compression}
    with pytest.raises(ConfigurationError, match="the file was changed"):
        rebuilt(forged)
    before = said(agent)
    with pytest.raises(ConfigurationError, match="holds the weights of its language model"):
        agent.on_load_checkpoint(checkpoint_of(new))
    assert torch.equal(said(agent), before)
    with pytest.raises(ConfigurationError, match="is part of a language model"):
        agent.compress(lambda policy: prune_layers(policy, [1]))


def test_an_encoder_that_nobody_describes_is_refused(words, tmp_path):
    agent = PPO(TEXT, lambda spec: LLMEncoder(spec, model=words))
    with pytest.raises(ConfigurationError, match="does not say by which encoder it reads"):
        own_language_model(agent, checkpoint_of(agent), tmp_path / "own")
    assert not (tmp_path / "own").exists()


def test_rounding_in_training_is_for_models_that_train(words, tmp_path):
    agent = PPO(TEXT, partial(LLMEncoder, model=words, tune="full"))
    agent.compress(partial(fake_quantise, bits=4, layers=["policy.encoder.backbone"]))
    assert torch.equal(said(rebuilt(checkpoint_of(agent))), said(agent))
