"""Stopping and going on equals never having stopped, bit for bit, with every reward."""

import warnings
from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from llm_tiny import tiny_model
from reward_tools import warmth
from training import make_trainer

from rl_lightning import DQN, PPO, ReplayDataModule, RolloutDataModule, TableEncoder
from rl_lightning.data.resume.remembered import read
from rl_lightning.data.resume.sidecar import find_sidecar
from rl_lightning.rewards import (
    CountBonus,
    GoalSimilarity,
    LabelledReward,
    Likelihood,
    RNDBonus,
    RuleLabeller,
    SuggestedGoals,
    TextFunction,
)

ROLLOUTS = partial(RolloutDataModule, num_envs=2, rollout_steps=8, val_episodes=2)
REPLAY = partial(
    ReplayDataModule, num_envs=2, warmup_frames=6, frames_per_epoch=16, batch_size=4, val_episodes=2
)
TABLE = partial(TableEncoder, capacity=500)
KINDS = {
    "ppo": (partial(PPO, encoder=TABLE), ROLLOUTS),
    "dqn": (partial(DQN, encoder=TABLE, target_update_frames=8), REPLAY),
}
COUNTED = []
RND = {"update_frames": 10, "hidden": (8,), "out_dim": 4, "batch_size": 4}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_model("bert", tmp_path_factory.mktemp("tiny") / "bert")


@pytest.fixture(scope="module")
def both(tiny, tmp_path_factory):
    return {"bert": tiny, "gpt2": tiny_model("gpt2", tmp_path_factory.mktemp("gpt2") / "gpt2")}


def exit_goals(text):
    """A rule that says something else each time: what is asked after resuming is not the same."""
    COUNTED.append(text)
    direction = text.rpartition("near ")[2].split()[0].strip(".,")
    return f"1. Go {direction}\n2. See {text}\n3. Count {len(COUNTED)}"


def verdict(text):
    COUNTED.append(text)
    return float(len(COUNTED))


def asked(tiny):
    """Rewards that ask labellers, and that score."""
    reads = {"model": tiny["bert"], "layers": 1, "threshold": 0.999}
    likely = partial(Likelihood, model=tiny["gpt2"], layers=1, max_length=128)
    goals = partial(SuggestedGoals, labeller=RuleLabeller(exit_goals), **reads)
    judge = partial(LabelledReward, labeller=RuleLabeller(verdict))
    return [
        partial(goals, template="See {after}"),
        partial(goals, novelty="count", template="{before} {action}: {after}"),
        partial(judge, template="{action} {after}"),
        partial(judge, shaping="potential", weight=0.01),
        partial(judge, every="episode_end"),
        partial(likely, weight=0.1),
        partial(likely, of="goal", goal="go to the exit", shaping="potential"),
        partial(likely, of="observation", template="You see:"),
    ]


def rewards_of(tiny):
    reads = {"model": tiny, "layers": 1}
    judge = partial(GoalSimilarity, goal="The exit is near north.", **reads)
    judges = [
        judge,
        partial(judge, shaping="potential"),
        partial(judge, form="once", threshold=0.2),
        partial(judge, of="transition"),
        partial(TextFunction, function=warmth, shaping="potential"),
    ]
    bonuses = [
        CountBonus,
        partial(CountBonus, episodic="first", lifetime="none"),
        partial(CountBonus, key="embedding", threshold=0.97, **reads),
        partial(RNDBonus, **RND, **reads),
    ]
    return {"judges": judges, "bonuses": bonuses, "all": judges + bonuses}


def same(a, b, path=""):
    """Assert that two nests of plain data and tensors are equal to the bit."""
    assert type(a) is type(b), path
    if isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            if key not in ("envs", "texts", "replay"):  # spaces' own generators; names of folders
                same(a[key], b[key], f"{path}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), path
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            same(x, y, f"{path}/{index}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    else:
        assert a == b or (a != a and b != b), path


def train(kind, rewards, folder, epochs, ckpt_path=None, warn=True, **more):
    """Train for so many epochs in all; returns the last checkpoint, loaded."""
    make, module = KINDS[kind]
    torch.manual_seed(1)
    options = {"total_frames": 10**5, "seed": 3, **more}
    data = module("TextMaze-v0", env_kwargs={"size": 4}, rewards=rewards, **options)
    saver = ModelCheckpoint(
        folder, "last", save_on_train_epoch_end=True, enable_version_counter=False
    )
    trainer = make_trainer(
        max_epochs=epochs, callbacks=[saver], enable_checkpointing=True, log_every_n_steps=1
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if warn:
            warnings.filterwarnings("error", ".*(cannot be|begins anew|fresh|starting with)")
        trainer.fit(make(data.spec), data, ckpt_path=ckpt_path)
    return torch.load(folder / "last.ckpt", weights_only=True)


@pytest.mark.parametrize(("kind", "case"), [("ppo", "judges"), ("ppo", "bonuses"), ("dqn", "all")])
def test_resumed_equals_uninterrupted(case, kind, tiny, tmp_path):
    going_on(kind, rewards_of(tiny)[case], tmp_path)


@pytest.mark.parametrize("kind", ["ppo", "dqn"])
def test_who_is_asked_again_is_not_heard_again(kind, both, tmp_path):
    """The labellers here say something else each time they are asked."""
    COUNTED.clear()
    whole = going_on(kind, lambda: asked(both), tmp_path)
    learned = whole["ranks"][0]["rewards"]
    assert learned["suggested_goals"]["achieved"]
    assert learned["labelled_reward"]["asked"]["answers"]


def going_on(kind, rewards, tmp_path):
    """Assert that stopping in the middle makes no difference; what the whole run has saved."""
    fresh = rewards if callable(rewards) else lambda: rewards
    whole = train(kind, fresh(), tmp_path / "whole", 4)
    COUNTED.clear()
    train(kind, fresh(), tmp_path / "half", 2)
    rest = train(kind, fresh(), tmp_path / "rest", 4, tmp_path / "half" / "last.ckpt")
    for key in ("state_dict", "optimizer_states", "frames"):
        same(whole[key], rest[key], key)
    module = "RolloutDataModule" if kind == "ppo" else "ReplayDataModule"
    same(whole[module], rest[module])
    stage = whole[module]["ranks"][0]["collector"]["stage"]
    assert len(stage["last"]) > 0  # episodes have ended, and others go on
    found = [
        read(find_sidecar(tmp_path / run / "last.ckpt", of[module]["texts"], 0, "texts"))
        for run, of in (("whole", whole), ("rest", rest))
    ]
    assert [one.keys for one in found[0]] == [one.keys for one in found[1]]
    for one, other in zip(*found, strict=True):
        assert torch.equal(one.rows, other.rows)
    return whole[module]


def test_what_was_learned_survives_other_numbers_of_environments(tmp_path):
    first = train("ppo", [CountBonus], tmp_path, 2)["RolloutDataModule"]["ranks"][0]
    path = tmp_path / "last.ckpt"
    again = train("ppo", [CountBonus], tmp_path / "b", 3, path, warn=False, num_envs=3)
    before, after = (
        dict(zip(map(tuple, one["places"].tolist()), one["visits"].tolist(), strict=True))
        for one in (
            state["rewards"]["count_bonus"]["counts"]
            for state in (first, again["RolloutDataModule"]["ranks"][0])
        )
    )
    assert before.keys() <= after.keys()
    # A step is a visit, and so is each beginning of an episode.
    assert sum(after.values()) >= sum(before.values()) + 3 * 8


def test_rewards_that_the_checkpoint_does_not_know_begin_anew(tmp_path):
    train("ppo", [CountBonus], tmp_path, 1)
    path = tmp_path / "last.ckpt"
    more = [CountBonus, partial(CountBonus, name="other")]
    with pytest.warns(UserWarning, match="knows nothing of 'other': it begins anew"):
        warned(more, tmp_path / "b", path)


def test_a_run_without_rewards_may_go_on_with_some(tmp_path):
    train("ppo", [], tmp_path, 1)
    with pytest.warns(UserWarning, match=r"goes on with fresh episodes"):
        warned([CountBonus], tmp_path / "b", tmp_path / "last.ckpt")
    train("ppo", [], tmp_path / "c", 3, tmp_path / "b" / "last.ckpt")


def warned(rewards, folder, path):
    make, module = KINDS["ppo"]
    data = module("TextMaze-v0", env_kwargs={"size": 4}, rewards=rewards, total_frames=10**5)
    trainer = make_trainer(max_epochs=2)
    trainer.fit(make(data.spec), data, ckpt_path=path)
    trainer.save_checkpoint(folder / "last.ckpt")
