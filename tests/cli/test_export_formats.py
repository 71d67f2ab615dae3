"""`rl-lightning export`: formats, what it says, and what the folder does by itself."""

import json
import os
import re
import subprocess
import sys
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from export_checkpoints import save_agent
from llm_tiny import tiny_model

from rl_lightning import PPO, Agent, BagOfWordsEncoder, EnvSpec, LLMEncoder, MLPEncoder
from rl_lightning.export import Parity

TEXT = gym.spaces.Text(30)


@pytest.fixture
def cartpole(tmp_path, monkeypatch):
    """A checkpoint of an agent that has seen CartPole and decides at random, but firmly."""
    monkeypatch.chdir(tmp_path)
    env = gym.make("CartPole-v1")
    agent = PPO(
        EnvSpec(env.observation_space, env.action_space, "CartPole-v1"),
        partial(MLPEncoder, normalize=True),
    )
    agent.encoder.observe(np.random.default_rng(0).normal(size=(64, 4)) * [0.5, 1.0, 0.1, 1.0])
    with torch.no_grad():
        agent.policy.action_head.linear.weight.mul_(100.0)
    return save_agent(agent, tmp_path / "cartpole.ckpt")


def returns(agent, episodes):
    """Of episodes that the agent plays greedily from seeds 0, 1, …"""
    env, totals = gym.make("CartPole-v1"), []
    for seed in range(episodes):
        obs, _ = env.reset(seed=seed)
        total, over = 0.0, False
        while not over:
            obs, reward, terminated, truncated, _ = env.step(agent.predict(obs))
            total, over = total + reward, terminated or truncated
        totals.append(total)
    return totals


def test_onnx_is_the_default_and_the_folder_plays_by_itself(cartpole, typed, tmp_path):
    said = typed("export", "--ckpt_path", str(cartpole), "--out", "out")
    assert re.search(r"wrote out: on 128 sampled observations .* 100.00% of the greedy", said)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "policy.onnx", "run_exported.py", "spec.json",
    ]  # fmt: skip
    blocked = tmp_path / "blocked"
    for name in ("torch", "lightning", "rl_lightning"):
        (blocked / name).mkdir(parents=True)
        (blocked / name / "__init__.py").write_text("raise ImportError('blocked')")
    environment = {**os.environ, "PYTHONPATH": str(blocked)}
    play = [sys.executable, "out/run_exported.py", "--env", "CartPole-v1", "--episodes", "3"]
    done = subprocess.run(play, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    played = returns(Agent.load_from_checkpoint(cartpole), 3)
    assert f"3 episodes, mean return {np.mean(played):.4g}, each {played}" in done.stdout
    done = subprocess.run(play[:2], capture_output=True, text=True, env=environment)
    assert "PPO for CartPole-v1: policy.onnx" in done.stdout
    assert "observation: float32 ['batch', 4]" in done.stdout

    # Whole or not at all, and never over something else.
    kept = (tmp_path / "out" / "policy.onnx").read_bytes()
    for form in ("onnx", "torch", "huggingface"):
        said = typed("export", "--ckpt_path", str(cartpole), "--out", "out", "--format", form,
                     status=2)  # fmt: skip
        assert "--out: out is there already; take another name" in said
    assert (tmp_path / "out" / "policy.onnx").read_bytes() == kept


def test_torch(cartpole, typed, tmp_path):
    said = typed("export", "--ckpt_path", str(cartpole), "--out", "a/b", "--format", "torch")
    assert "wrote a/b" in said
    assert json.loads((tmp_path / "a/b/spec.json").read_text())["format"] == "torch"
    module = torch.export.load(tmp_path / "a/b/policy.pt2").module()
    logits, _ = module(torch.zeros(1, 4), torch.ones(1, 2, dtype=torch.bool))
    assert logits.shape == (1, 2)


WRONG = {
    "--format='tflite': use one of onnx, torch, huggingface": ["--format", "tflite"],
    "nowhere.ckpt: the file does not exist": ["--ckpt_path", "nowhere.ckpt"],
    "this is no checkpoint": ["--ckpt_path", "text.ckpt"],
    "PPO has no language models": ["--format", "huggingface"],
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_words_are_a_sentence(message, cartpole, typed, tmp_path):
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    words = ["--ckpt_path", str(cartpole), "--out", "out", *WRONG[message]]
    said = typed("export", *words, status=2)
    assert message in said
    assert len([line for line in said.splitlines() if line.strip()]) == 1
    assert not (tmp_path / "out").exists()


def test_a_tuned_model_is_what_is_exported_by_default(typed, tmp_path, monkeypatch):
    """And of a frozen one the policy, unless asked for."""
    model = tiny_model("bert", tmp_path / "bert", layers=1)
    spec = EnvSpec(TEXT, gym.spaces.Discrete(2))
    for tune in ("full", "frozen"):
        agent = PPO(spec, partial(LLMEncoder, model=str(model), tune=tune, max_length=8))
        save_agent(agent, tmp_path / f"{tune}.ckpt")
    out = str(tmp_path / "full")
    typed("export", "--ckpt_path", str(tmp_path / "full.ckpt"), "--out", out)
    assert (tmp_path / "full" / "config.json").exists()
    asked = []

    def note(agent, folder, form):
        asked.append(form)
        return Parity(128, 0.0, 1.0, 0)

    monkeypatch.setattr("rl_lightning.export.export_policy", note)
    typed("export", "--ckpt_path", str(tmp_path / "frozen.ckpt"), "--out", "policy")
    assert asked == ["onnx"]


def test_words_need_no_file_beside(typed, tmp_path):
    agent = PPO(EnvSpec(TEXT, gym.spaces.Discrete(2)), partial(BagOfWordsEncoder, buckets=9))
    path = save_agent(agent, tmp_path / "words.ckpt")
    out = str(tmp_path / "out")
    typed("export", "--ckpt_path", str(path), "--out", out, "--format", "torch")
    (read,) = json.loads((tmp_path / "out/spec.json").read_text())["observation"]
    assert (read["kind"], read["buckets"], read["ngrams"]) == ("words", 9, 3)
