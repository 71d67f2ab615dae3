"""`rl-lightning compress`: from a checkpoint to a smaller one."""

import re

import pytest
import torch

from rl_lightning import Agent
from rl_lightning.cli.compare import compare_actions, watch
from rl_lightning.data import RLDataModule

COMMON = (
    *("--config", "config.yaml", "--trainer.logger", "false"),
    *("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"),
)
CONFIG = """
seed_everything: 1
model:
  class_path: rl_lightning.{agent}
data:
  class_path: rl_lightning.{data}
  init_args: {{{arguments}, val_episodes: 4, val_num_envs: 2}}
trainer: {{accelerator: cpu, max_epochs: -1}}
checkpoint: {{dirpath: saved}}
"""
RUNS = {
    "PPO": ("RolloutDataModule", "env: CartPole-v1, num_envs: 4, rollout_steps: 32"),
    "DQN": ("ReplayDataModule", "env: CartPole-v1, num_envs: 4, warmup_frames: 64"),
    "SAC": ("ReplayDataModule", "env: Pendulum-v1, num_envs: 4, warmup_frames: 64"),
}
METHODS = {
    "prune-weights": ("--share", "0.5"),
    "prune-nodes": ("--share", "0.5"),
    "quantise": ("--bits", "8"),
    "quantise-aware": ("--bits", "4"),
}


def train(typed, agent, frames, *more):
    return typed("fit", *COMMON, "--data.total_frames", str(frames), *more)


@pytest.fixture
def trained(typed, tmp_path, monkeypatch):
    def make(agent):
        monkeypatch.chdir(tmp_path)
        data, arguments = RUNS[agent]
        more = "frames_per_epoch: 128" if data.startswith("Replay") else "passes: 1"
        config = CONFIG.format(agent=agent, data=data, arguments=f"{arguments}, {more}")
        (tmp_path / "config.yaml").write_text(config)
        train(typed, agent, 256)
        return "saved/last.ckpt"

    return make


def shrink(typed, path, method, *more, status=None):
    words = ("--ckpt_path", path, "--method", method, "--observations", "60")
    return typed("compress", *words, *METHODS.get(method, ()), *more, status=status)


def test_more_than_the_beginnings_of_episodes_is_watched(trained):
    path = trained("PPO")
    agent, data = Agent.load_from_checkpoint(path).eval(), RLDataModule.load_from_checkpoint(path)
    for steps, stretch, envs in ((100, 100, 1), (400, 200, 2), (1_000, 500, 2)):
        seen = watch(agent, data, steps)
        assert (len(seen), len(seen[0].action)) == (stretch, envs)


@pytest.mark.parametrize("method", METHODS)
def test_it_validates_alone_and_trains_on(typed, trained, method):
    path = trained("PPO")
    said = shrink(typed, path, method, "--out", "small.ckpt")
    assert re.search(r"[\d.]+% of 60 actions agree", said)
    assert "wrote small.ckpt" in said
    typed("validate", "--ckpt_path", "small.ckpt", "--trainer.logger", "false")
    before = torch.load("small.ckpt", weights_only=True)
    if method == "quantise":
        with pytest.warns(UserWarning, match="weights are quantised, and stay as they are"):
            train(typed, "PPO", 512, "--ckpt_path", "small.ckpt", "--checkpoint.dirpath", "on")
        return
    train(typed, "PPO", 512, "--ckpt_path", "small.ckpt", "--checkpoint.dirpath", "on")
    after = torch.load("on/last.ckpt", weights_only=True)
    assert after["compression"] == before["compression"]
    assert after["frames"] == 512
    changed = 0
    for key, value in after["state_dict"].items():
        assert value.shape == before["state_dict"][key].shape
        changed += not torch.equal(value, before["state_dict"][key])
        if key.endswith("mask"):  # the same weights are zero
            assert torch.equal(value, before["state_dict"][key])
    assert changed > 4


@pytest.mark.parametrize("agent", ["DQN", pytest.param("SAC", marks=pytest.mark.slow)])
def test_agents_with_targets_train_on_without_what_was_collected(typed, trained, agent):
    path = trained(agent)
    shrink(typed, path, "prune-nodes", "--out", "small.ckpt")
    train(typed, agent, 512, "--ckpt_path", "small.ckpt", "--checkpoint.dirpath", "on")
    assert torch.load("on/last.ckpt", weights_only=True)["frames"] >= 512


def test_pruned_nodes_take_their_optimizer_state_with_them(typed, trained):
    path = trained("PPO")
    shrink(typed, path, "prune-nodes", "--out", "small.ckpt")
    small = torch.load("small.ckpt", weights_only=True)
    agent = Agent.load_from_checkpoint("small.ckpt")
    (state,) = small["optimizer_states"]
    shapes = [p.shape for g in agent.configure_optimizers().param_groups for p in g["params"]]
    assert [state["state"][i]["exp_avg"].shape for i in range(len(shapes))] == shapes
    assert all(float(state["state"][i]["step"]) > 0 for i in range(len(shapes)))


def test_masked_weights_keep_the_optimizer_state_of_the_weights_they_mask(typed, trained):
    path = trained("PPO")
    shrink(typed, path, "prune-weights", "--out", "small.ckpt")
    before, after = (torch.load(p, weights_only=True) for p in (path, "small.ckpt"))
    agent = Agent.load_from_checkpoint("small.ckpt")
    shapes = [p.shape for g in agent.configure_optimizers().param_groups for p in g["params"]]
    states = after["optimizer_states"][0]["state"]
    assert [states[i]["exp_avg"].shape for i in range(len(shapes))] == shapes
    total = sum(s["exp_avg"].abs().sum() for s in states.values())
    former = sum(s["exp_avg"].abs().sum() for s in before["optimizer_states"][0]["state"].values())
    assert total == pytest.approx(float(former))


def test_too_little_agreement_writes_nothing(typed, trained, tmp_path):
    path = trained("PPO")
    bits = ("--ckpt_path", path, "--method", "quantise", "--bits", "1", "--observations", "60")
    said = typed("compress", *bits, "--min_agreement", "1.0", "--out", "small.ckpt", status=2)
    assert "--min_agreement: 1.0 is more than" in said
    assert not (tmp_path / "small.ckpt").exists()
    typed("compress", *bits, "--out", "small.ckpt")


def test_mistakes_get_a_sentence(typed, trained, tmp_path):
    path = trained("PPO")

    def refused(*words):
        return typed("compress", "--ckpt_path", path, "--out", "small.ckpt", *words, status=2)

    assert "--share: prune-nodes needs it" in refused("--method", "prune-nodes")
    assert "--bits: quantise needs it" in refused("--method", "quantise")
    assert "--bits: prune-nodes has no use for it" in refused(
        "--method", "prune-nodes", "--share", "0.5", "--bits", "8"
    )
    assert "--scope: quantise has no use" in refused(
        "--method", "quantise", "--bits", "8", "--scope", "layer"
    )
    assert "invalid choice: 'squeeze'" in refused("--method", "squeeze")
    assert "bits must be 1" in refused("--method", "quantise", "--bits", "9")
    assert "nowhere" in refused("--method", "quantise", "--bits", "8", "--layers", "nowhere")
    assert "no layer is trained under quantisation" in refused("--method", "harden")
    (tmp_path / "small.ckpt").write_text("precious")
    assert "is there already" in refused("--method", "quantise", "--bits", "8")
    assert (tmp_path / "small.ckpt").read_text() == "precious"


def test_the_command_says_what_became_smaller(typed, trained):
    path = trained("PPO")
    said = shrink(typed, path, "prune-nodes", "--out", "nodes.ckpt")
    # Two networks of 4 × 64, 64 × 64 and 64 × 2 or 64 × 1, half of whose nodes go.
    assert f"{2 * 64 * 68 + 3 * 64:,} → {2 * 32 * 36 + 3 * 32:,} multiplications" in said
    said = shrink(typed, path, "prune-weights", "--out", "weights.ckpt")
    before, after = re.search(r"([\d,]+) → ([\d,]+) weights that are not zero", said).groups()
    before, after = (int(number.replace(",", "")) for number in (before, after))
    assert after == pytest.approx(before - 0.5 * (2 * 64 * 68 + 3 * 64), abs=2)


def test_continuous_actions_are_near_by_the_range_of_each_number():
    before = torch.tensor([[0.0, 0.0], [1.0, 100.0]])
    assert compare_actions(before, before + torch.tensor([0.04, 4.0])).share == 1.0
    assert compare_actions(before, before + torch.tensor([0.04, 6.0])).share == 0.0
    assert compare_actions(before, before + torch.tensor([[0.06, 0.0], [0.0, 0.0]])).share == 0.5


def test_discrete_actions_must_be_the_same():
    before = torch.tensor([[0, 1], [2, 3]])
    assert compare_actions(before, torch.tensor([[0, 1], [2, 2]])).share == 0.5
    assert compare_actions(before[:, 0], before[:, 0]).share == 1.0
