"""`rl-lightning compress` of the language model inside a checkpoint."""

import copy
import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from owned_models import NAMED, SEEN, WORDS, trained, words_model
from training import make_trainer

from rl_lightning import PPO, Agent, LLMEncoder, RolloutDataModule
from rl_lightning.cli import main
from rl_lightning.compress import prune_heads, prune_layers, quantise
from rl_lightning.compress.packed import PackedLayer
from rl_lightning.core.errors import ConfigurationError
from rl_lightning.llm import load_backbone

LM = ("--part", "language-model")
BITS = ("--method", "quantise", "--bits", "8", *LM)
CUT = ("--method", "cut-vocabulary")
QUIET = ("--trainer.logger", "false", "--trainer.enable_progress_bar", "false")
TEXTS = [SEEN, "There is a wall to the east."]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A checkpoint of PPO over a frozen model of a few words."""
    folder = tmp_path_factory.mktemp("original")
    model = words_model(folder / "words")
    return trained(lambda spec: PPO(spec, partial(LLMEncoder, model=model)), folder / "a.ckpt")


@pytest.fixture(scope="module")
def before(original):
    """The agent of `original`; what changes it takes a copy."""
    return Agent.load_from_checkpoint(original).eval()


@pytest.fixture(scope="module")
def cut(original):
    """`original`, its vocabulary cut to what was seen."""
    out = Path(original).with_name("cut.ckpt")
    main(["compress", "--ckpt_path", original, *CUT, "--observations", "20", "--out", str(out)])
    return str(out)


@pytest.fixture
def shrink(typed, original, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(*words, path=original, out="small.ckpt", status=None):
        own = ("--ckpt_path", str(path), "--observations", "20", "--out", out)
        return typed("compress", *own, *words, status=status)

    return call


def features(agent, texts=TEXTS):
    return agent.eval().preprocess(texts)


def backbone(agent):
    return agent.encoder.backbone


def logits(agent, texts=TEXTS):
    return agent.inspect(features(agent, texts))["probabilities"]


# --- the vocabulary -------------------------------------------------------------------------------


def test_a_cut_vocabulary_changes_nothing_of_what_was_seen(shrink, before, typed):
    said = shrink(*CUT)
    assert "100.0% of 20 actions agree" in said
    after = Agent.load_from_checkpoint("small.ckpt")
    assert torch.equal(features(after), features(before))
    assert torch.equal(logits(after), logits(before))
    seen = {"there", "is", "a", "wall", "to", "the", "north", "east", "."}
    tokenizer = backbone(after).tokens.tokenizer
    assert set(tokenizer.get_vocab()) == {*WORDS[:4], *seen}
    assert backbone(after).model.get_input_embeddings().weight.shape == (13, 16)
    assert json.loads(Path("small-model/config.json").read_text())["vocab_size"] == 13
    assert not any(p.requires_grad for p in backbone(after).parameters())
    typed("validate", "--ckpt_path", "small.ckpt", *QUIET)
    assert "4 episodes" in typed("predict", "--ckpt_path", "small.ckpt", *QUIET)


def test_an_unseen_word_is_unknown_or_spelled_and_never_another_word(before, cut):
    after = Agent.load_from_checkpoint(cut)
    tokens = backbone(after).tokens
    unknown = tokens.tokenizer.unk_token_id
    assert tokens(["zebra"])[0][1:-1] == [unknown] == tokens(["qqq"])[0][1:-1]
    # What the whole model makes of an unknown word, the cut one makes of every unseen one.
    assert torch.equal(features(after, ["a zebra"]), features(before, ["a qqq"]))


def test_texts_of_a_file_are_kept(shrink, before, tmp_path):
    (tmp_path / "texts.txt").write_text("a zebra door\n\n")
    shrink(*CUT, "--texts", "texts.txt")
    after = Agent.load_from_checkpoint("small.ckpt")
    assert torch.equal(features(after, ["a zebra"]), features(before, ["a zebra"]))
    assert {"zebra", "door"} < set(backbone(after).tokens.tokenizer.get_vocab())
    (tmp_path / "texts.txt").write_text("\n")
    assert "holds no text" in shrink(*CUT, "--texts", "texts.txt", out="b.ckpt", status=2)
    assert "cannot be read" in shrink(*CUT, "--texts", "none.txt", out="b.ckpt", status=2)


# --- quantised and pruned -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "change"),
    [
        (BITS, lambda model: quantise(model, 8)),
        ((*BITS[:3], "4", *LM, "--group_size", "4"), lambda m: quantise(m, 4, group_size=4)),
        (("--method", "prune-layers", "--keep_layers", "1"), lambda m: prune_layers(m, [1])),
        (("--method", "prune-heads", "--share", "0.5"), lambda m: prune_heads(m, 0.5)),
        (("--method", "prune-nodes", "--share", "0.5", *LM), lambda m: half_the_nodes(m)),
    ],
    ids=["8 bits", "4 bits", "layers", "heads", "nodes"],
)
def test_it_is_what_the_operator_makes_of_the_plain_model(shrink, before, words, change):
    shrink(*words)
    agent, expected = Agent.load_from_checkpoint("small.ckpt"), copy.deepcopy(before)
    expected.encoder.cache.clear()
    change(backbone(expected).model)
    said = [one.encoder.preprocess_raw(TEXTS) for one in (agent, expected, before)]
    assert torch.equal(said[0], said[1])
    assert not torch.equal(said[0], said[2])
    own = dict(backbone(agent).model.state_dict())
    for name, tensor in backbone(expected).model.state_dict().items():
        assert torch.equal(own.pop(name), tensor), name
    assert not own


@pytest.mark.parametrize(
    "words",
    [(*BITS[:3], "4", *LM), ("--method", "prune-layers", "--keep_layers", "1")],
    ids=["4 bits", "layers"],
)
def test_what_it_says_is_standardised_to_where_it_was(shrink, original, before, words):
    from rl_lightning.cli.compare import watch

    shrink(*words)
    agent, plain = Agent.load_from_checkpoint("small.ckpt"), copy.deepcopy(before)
    data = RolloutDataModule.load_from_checkpoint(original)
    texts = [text for one in watch(plain, data, 20, keeps_raw=True) for text in one.obs]
    now, was = features(agent, texts), features(before, texts)
    assert 1 < len(set(texts)) < 8  # too few to know how much a feature varies
    at = now.abs().amax(0) < 10.0  # others are clipped
    assert at.float().mean() > 0.8
    torch.testing.assert_close(now.mean(0)[at], was.mean(0)[at], atol=1e-4, rtol=0)
    former = before.encoder.norm(agent.encoder.preprocess_raw(texts))
    assert not torch.allclose(former.mean(0), was.mean(0), atol=1e-2)


def half_the_nodes(model):
    """Half of the nodes of each feed-forward layer gone by hand, the larger ones kept."""
    for layer in model.encoder.layer:
        wide, back = layer.intermediate.dense, layer.output.dense
        norms = (wide.weight.square().sum(1) + back.weight.square().sum(0)).sqrt()
        kept = norms.argsort()[len(norms) // 2 :].sort().values
        for owner, name, dim in ((wide, "weight", 0), (wide, "bias", 0), (back, "weight", 1)):
            tensor = getattr(owner, name).detach().index_select(dim, kept)
            setattr(owner, name, torch.nn.Parameter(tensor, requires_grad=False))


def test_nodes_of_one_layer_alone(shrink, before):
    path = "policy.encoder.backbone.model.encoder.layer.1.intermediate.dense"
    shrink("--method", "prune-nodes", "--share", "0.25", *LM, "--layers", path)
    agent = Agent.load_from_checkpoint("small.ckpt")
    wide = [layer.intermediate.dense.out_features for layer in backbone(agent).model.encoder.layer]
    assert wide[1] == wide[0] * 3 // 4
    said = shrink(
        *(
            "--method",
            "prune-nodes",
            "--share",
            "0.5",
            *LM,
            "--layers",
            path.replace("te.dense", "t"),
        ),
        out="b.ckpt",
        status=2,
    )
    assert "no layer" in said
    heads = path.replace("intermediate.dense", "attention.self.query")
    said = shrink(
        *("--method", "prune-nodes", "--share", "0.5", *LM, "--layers", heads),
        out="b.ckpt",
        status=2,
    )
    assert "attention" in said


def test_some_layers_alone_can_be_quantised(shrink):
    name = "policy.encoder.backbone.model.encoder.layer.0"
    shrink(*BITS, "--layers", name)
    agent = Agent.load_from_checkpoint("small.ckpt")
    packed = [n for n, part in agent.named_modules() if isinstance(part, PackedLayer)]
    assert len(packed) == 6
    assert all(n.startswith(f"{name}.") for n in packed)
    said = shrink(*BITS, "--layers", "policy.actor", out="b.ckpt", status=2)
    assert "policy.actor is not inside policy.encoder.backbone" in said


def test_weights_of_the_language_model_alone_are_masked(shrink):
    shrink("--method", "prune-weights", "--share", "0.5", *LM)
    agent = Agent.load_from_checkpoint("small.ckpt")
    masks = {n: b for n, b in agent.named_buffers() if n.endswith("mask")}
    assert len(masks) == 12
    assert all(".backbone." in name for name in masks)
    kept = sum(int(mask.sum()) for mask in masks.values())
    assert kept == sum(mask.numel() for mask in masks.values()) // 2


def test_compressed_again_and_again(shrink, cut):
    heads = ("--method", "prune-heads", "--share", "0.25")
    assert "-model" not in shrink(*heads, path=cut, out="heads.ckpt")
    shrink(*CUT, path="heads.ckpt", out="again.ckpt")
    shrink(*BITS, path="again.ckpt")
    # Around it, too, where the language model stays as it is.
    shrink("--method", "quantise", "--bits", "8", path="small.ckpt", out="all.ckpt")
    agent, last = (Agent.load_from_checkpoint(p) for p in ("small.ckpt", "all.ckpt"))
    assert [r["operator"] for r in last.compression] == ["prune_heads", "quantise", "quantise"]
    assert torch.equal(features(agent), features(last))
    assert isinstance(last.policy.actor[0], PackedLayer)
    said = shrink(*CUT, path="small.ckpt", out="b.ckpt", status=2)
    assert "cut the vocabulary of the plain model, before it is quantised" in said


# --- going on -------------------------------------------------------------------------------------


def test_training_goes_on_and_what_was_frozen_is_frozen(shrink, cut):
    shrink(*BITS, path=cut)
    agent = Agent.load_from_checkpoint("small.ckpt")
    before = {n: t.clone() for n, t in backbone(agent).model.state_dict().items()}
    actor = agent.policy.actor[0].weight.clone()
    data = RolloutDataModule.load_from_checkpoint("small.ckpt")
    data.total_frames = 64
    trainer = make_trainer()
    with pytest.warns(UserWarning, match="weights are quantised"):
        trainer.fit(agent, data, ckpt_path="small.ckpt")
    trainer.save_checkpoint("on.ckpt")
    assert agent.frames == 64
    assert not torch.equal(agent.policy.actor[0].weight, actor)
    for name, tensor in backbone(agent).model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    again = Agent.load_from_checkpoint("on.ckpt")
    assert torch.equal(logits(again), logits(agent))


CONFIG = """
seed_everything: 1
model:
  class_path: rl_lightning.PPO
  init_args:
    encoder: {{class_path: rl_lightning.LLMEncoder, init_args: {{model: {model}}}}}
data:
  class_path: rl_lightning.RolloutDataModule
  init_args: {{env: "{env}", num_envs: 2, rollout_steps: 8, total_frames: 64, val_episodes: 2}}
trainer: {{accelerator: cpu, max_epochs: -1, logger: false, enable_progress_bar: false}}
checkpoint: {{dirpath: saved}}
"""


def test_a_configuration_names_the_folder_to_train_on(shrink, before, typed, tmp_path):
    model = backbone(before).source["model"]
    (tmp_path / "config.yaml").write_text(CONFIG.format(model=model, env=NAMED))
    shrink(*BITS)
    fit = ("fit", "--config", "config.yaml", "--ckpt_path", "small.ckpt")
    said = typed(*fit, status=2)
    assert f"`pretrained: false` and `model: {tmp_path / 'small-model'}`" in said
    encoder = "--model.init_args.encoder.init_args"
    typed(*fit, f"{encoder}.model", "small-model", f"{encoder}.pretrained", "false")
    after = torch.load("saved/last.ckpt", weights_only=True)
    assert after["frames"] == 64
    assert after["compression"] == torch.load("small.ckpt", weights_only=True)["compression"]


def test_the_folder_may_move_with_the_checkpoint(shrink, before, tmp_path):
    shrink(*CUT)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("small.ckpt", "small-model"):
        shutil.move(name, elsewhere / name)
    agent = Agent.load_from_checkpoint(elsewhere / "small.ckpt")
    assert torch.equal(logits(agent), logits(before))
    shrink(*BITS, path=elsewhere / "small.ckpt", out="b.ckpt")
    shutil.rmtree(elsewhere / "small-model")
    said = shrink(*CUT, path=elsewhere / "small.ckpt", out="c.ckpt", status=2)
    assert "cannot find model=" in said


def test_the_folder_alone_is_no_model(cut):
    with pytest.raises(ConfigurationError, match="are in the checkpoint that was written with it"):
        load_backbone(str(Path(cut).with_name("cut-model")))


def test_what_transformers_can_say_is_exported_for_others(shrink, cut, typed):
    export = ("export", "--format", "huggingface", "--ckpt_path")
    shrink("--method", "prune-heads", "--share", "0.5", path=cut)
    typed(*export, cut, "--out", "plain")
    model, tokenizer = load_backbone("plain")
    agent = Agent.load_from_checkpoint(cut)
    assert len(tokenizer) == 13
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, backbone(agent).model.state_dict()[name])
    assert "prune_heads has changed layers" in typed(
        *export, "small.ckpt", "--out", "other", status=2
    )


# --- mistakes -------------------------------------------------------------------------------------


def test_what_is_not_written_leaves_nothing(shrink, tmp_path):
    words = ("--method", "quantise", "--bits", "1", *LM, "--min_agreement", "1.0")
    said = shrink(*words, "--method", "prune-layers", "--keep_layers", "7", status=2)
    assert "--bits: prune-layers has no use" in said
    said = shrink("--method", "prune-layers", "--keep_layers", "7", status=2)
    assert "keep" in said
    assert not list(tmp_path.iterdir())
    (tmp_path / "small-model").mkdir()
    (tmp_path / "small-model" / "precious").write_text("")
    assert "small-model is there already" in shrink(*CUT, status=2)
    shrink(*BITS, "--model_out", "other")
    assert (tmp_path / "other" / "config.json").is_file()
    assert (tmp_path / "small-model" / "precious").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((*CUT, "--part", "policy"), "--part: cut-vocabulary is of the language model"),
        ((*CUT, "--share", "0.5"), "--share: cut-vocabulary has no use for it"),
        ((*CUT, "--layers", "a"), "--layers: cut-vocabulary has no use for it"),
        ((*BITS, "--texts", "a"), "--texts: quantise has no use for it"),
        (("--method", "quantise", "--bits", "8", "--model_out", "a"), "--model_out: quantise has"),
        (("--method", "prune-heads"), "--share: prune-heads needs it"),
        (("--method", "prune-layers"), "--keep_layers: prune-layers needs it"),
        (("--method", "prune-layers", "--keep_layers", "a"), "must be rising numbers of layers"),
        (("--method", "prune-layers", "--keep_layers", "0,5"), "numbers of layers from 0 to 1"),
        ((*BITS, "--layers", "x"), "near it are policy.encoder.backbone"),
        (("--method", "prune-layers", "--keep_layers", "1,0"), "rising"),
        (("--method", "prune-layers", "--layers", "1"), "--keep_layers lists those that stay"),
        (("--method", "prune-nodes", *LM), "--share: prune-nodes needs it"),
        (
            ("--method", "prune-nodes", "--share", "0.5", *LM, "--layers", "policy.actor.0"),
            "policy.actor.0 is not inside policy.encoder.backbone",
        ),
        (("--method", "harden", *LM), "--part: harden takes no language model by itself"),
        (("--method", "quantise-aware", "--bits", "8", *LM), "(tune: frozen); use quantise"),
    ],
)
def test_mistakes_get_a_sentence(shrink, words, message, tmp_path):
    assert message in shrink(*words, status=2)
    assert not list(tmp_path.iterdir())


def test_a_policy_without_language_model(shrink, tmp_path):
    path = trained(
        PPO, tmp_path / "a.ckpt", RolloutDataModule("CartPole-v1", 2, 8, total_frames=16)
    )
    assert "has no language model" in shrink(*CUT, path=path, status=2)
