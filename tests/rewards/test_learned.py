"""Rewards out of a reward model's checkpoint: Motif's formula, its counts, and going on."""

import math
import os
import pickle
import warnings
from functools import partial
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from preference_tools import Words, model, module, record_mazes
from training import fit as fit_agent
from training import make_trainer

import rl_lightning
from rl_lightning import PPO, EnvSpec, RewardModel, RolloutDataModule
from rl_lightning.core.errors import ConfigurationError
from rl_lightning.rewards import LearnedReward, Step
from rl_lightning.rewards.observations import same_kind, select
from rl_lightning.rewards.statistics import quantile, statistics_of

TEXTS = EnvSpec(gym.spaces.Text(100), gym.spaces.Discrete(4), "Texts-v0")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model of TextMaze, and where it is saved."""
    folder = tmp_path_factory.mktemp("learned")
    data = module(record_mazes(folder / "mazes.hdf5"))
    learner = model(data.spec)
    trainer = make_trainer(gradient_clip_val=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(learner, data)
    trainer.save_checkpoint(folder / "reward.ckpt")
    return learner.eval(), str(folder / "reward.ckpt")


GOOD = "New north, new east, new south, new west. The exit is near north, near east."
FAIR = "New north, new east, new south, new west. The exit is near north, far east."
BAD = "Often north, often east, wall south, often west. The exit is far north, far east."


def step(*after, started=None, valid=None, obs=None, action=None):
    count = len(after)
    flags = np.zeros(count, bool)
    return Step(
        obs or after,
        np.zeros(count, np.int64) if action is None else np.array(action),
        after,
        np.zeros(count),
        flags,
        flags,
        flags if started is None else np.array(started),
        ~flags if valid is None else np.array(valid),
        {},
    )


def reward(path, envs=2, **kwargs):
    made = LearnedReward(TEXTS, path, **kwargs)
    made.setup(envs, 0.99, torch.device("cpu"))
    return made


def test_motifs_formula(trained):
    learner, path = trained
    told = learner.statistics
    raw = learner.score((GOOD, BAD)).double().numpy()
    assert raw[0] > quantile(told, 0.5) > raw[1]
    normal = (raw - told["mean"]) / told["std"]
    paid = reward(path)(step(GOOD, BAD))
    assert paid == pytest.approx([normal[0], 0.0])  # below the median nothing is paid
    assert reward(path, quantile=None)(step(GOOD, BAD)) == pytest.approx(normal)
    assert reward(path, quantile=1.0)(step(BAD, BAD)).tolist() == [0.0, 0.0]
    assert reward(path, normalize=False, quantile=None)(step(GOOD, BAD)) == pytest.approx(raw)
    assert reward(path, normalize=False)(step(GOOD, BAD)) == pytest.approx([raw[0], 0.0])


def test_counts_of_an_episode(trained):
    _, path = trained
    made, plain = reward(path, count_power=2.0), reward(path)
    worth = plain(step(GOOD, FAIR))
    assert made(step(GOOD, GOOD)) == pytest.approx([worth[0], worth[0]])
    assert made(step(GOOD, FAIR)) == pytest.approx([worth[0] / 4, worth[1]])
    assert made(step(GOOD, GOOD)) == pytest.approx([worth[0] / 9, worth[0] / 4])
    # In environment 0 a new episode begins.
    assert made(step(GOOD, GOOD, started=[True, False])) == pytest.approx([worth[0], worth[0] / 9])


def test_counts_of_a_lifetime(trained):
    _, path = trained
    made, worth = reward(path, count_power=1.0, count="lifetime"), reward(path)(step(GOOD, GOOD))[0]
    assert made(step(GOOD, GOOD)) == pytest.approx([worth, worth / 2])  # in order
    made.synchronize()
    again = step(GOOD, GOOD, started=[True, True])
    assert made(again) == pytest.approx([worth / 3, worth / 4])


def test_steps_that_were_resets_are_not_counted(trained):
    _, path = trained
    made = reward(path, count_power=1.0)
    first = made(step(GOOD, GOOD, valid=[True, False]))
    assert math.isfinite(first[1])
    second = made(step(GOOD, GOOD))
    assert second == pytest.approx([first[0] / 2, first[0]])


def test_texts_are_read_once(trained):
    _, path = trained
    made = reward(path, 3)
    read = []
    score = made.model.score
    made.model.score = lambda obs, *more: read.append(obs) or score(obs, *more)
    first = made(step(GOOD, BAD, GOOD))
    assert made(step(BAD, GOOD, BAD))[1] == first[0]
    assert read == [(GOOD, BAD)]
    assert made.metrics() == {"remembered": 4 / 6, "paid": 3 / 6}
    assert made.metrics() == {}
    forgetful = reward(path, 1, remember=0)
    forgetful.model.score = lambda obs, *more: read.append(obs) or score(obs, *more)
    forgetful(step(GOOD))
    forgetful(step(GOOD))
    assert len(read) == 3
    assert not made.model.training
    assert not any(p.requires_grad for p in made.model.parameters())


def test_batched_is_single(trained):
    _, path = trained
    together = reward(path, 3)(step(GOOD, FAIR, BAD))
    alone = [reward(path, 1)(step(text))[0] for text in (GOOD, FAIR, BAD)]
    assert together == pytest.approx(alone, rel=1e-6)


def test_its_state_goes_on_to_the_last_bit(trained):
    _, path = trained
    for count in ("episode", "lifetime"):
        made = reward(path, count_power=1.5, count=count)
        for texts in ((GOOD, BAD), (GOOD, FAIR)):
            made(step(*texts))
        if count == "lifetime":
            made.synchronize()
            made(step(GOOD, GOOD))
        again = reward(path, count_power=1.5, count=count)
        state, episode = pickle.loads(pickle.dumps((made.state_dict(), made.episode_state())))
        again.load_state_dict(state)
        again.load_episode_state(episode)
        again.model.score = None  # everything is remembered
        assert again(step(GOOD, FAIR)).tolist() == made(step(GOOD, FAIR)).tolist()


def test_another_file_on_resuming_is_told(trained, tmp_path):
    path = trained[1]
    checkpoint = torch.load(path, weights_only=True)
    for value in checkpoint["state_dict"].values():
        value.mul_(2.0)
    torch.save(checkpoint, tmp_path / "other.ckpt")
    made = reward(path)
    made(step(GOOD, BAD))
    other = reward(str(tmp_path / "other.ckpt"))
    with pytest.warns(UserWarning, match=r"other.ckpt is another file than the one"):
        other.load_state_dict(made.state_dict())
    assert other._known == {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reward(path).load_state_dict(made.state_dict())


def test_a_later_run_beside_the_file_is_told(trained, tmp_path):
    path = tmp_path / "best.ckpt"
    path.write_bytes(Path(trained[1]).read_bytes())
    later = tmp_path / "version_1" / "best.ckpt"
    later.parent.mkdir()
    later.write_bytes(path.read_bytes())
    os.utime(later, (1, 1))  # an earlier one is of no interest
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reward(str(path))
    os.utime(path, (0, 0))
    with pytest.warns(UserWarning, match=r"a later run has written .*version_1/best.ckpt"):
        reward(str(path))


def transitions(tmp_path):
    learner = RewardModel(TEXTS, Words, inputs="transition", hidden=())
    with torch.no_grad():
        learner.network.head.weight.zero_()
        learner.network.head.weight[0, 128:132] = torch.arange(4.0)  # the action
    learner.statistics = statistics_of(torch.tensor([0.0, 3.0]))
    trainer = make_trainer()
    trainer.strategy.connect(learner)
    trainer.save_checkpoint(tmp_path / "t.ckpt")
    return str(tmp_path / "t.ckpt")


def test_transitions_are_judged_as_such(tmp_path):
    made = reward(transitions(tmp_path), 3, normalize=False, quantile=None)
    assert made(step("x", "x", "x", action=[0, 1, 3])).tolist() == [0.0, 1.0, 3.0]
    assert made(step("x", "x", "x", action=[3, 0, 1])).tolist() == [3.0, 0.0, 1.0]


def test_as_a_potential(trained):
    path = trained[1]
    phi = dict(zip((GOOD, FAIR, BAD), reward(path, 3)(step(GOOD, FAIR, BAD)), strict=True))
    made = reward(path, shaping="potential", offset=-2.0)
    flags = {"obs": (BAD, FAIR), "started": [True, True]}
    assert made(step(FAIR, GOOD, **flags)) == pytest.approx(
        [0.99 * (phi[FAIR] - 2) - (phi[BAD] - 2), 0.99 * (phi[GOOD] - 2) - (phi[FAIR] - 2)]
    )
    over = step(GOOD, BAD)._replace(terminated=np.array([True, False]))
    assert made(over) == pytest.approx(
        [0 - (phi[FAIR] - 2), 0.99 * (phi[BAD] - 2) - (phi[GOOD] - 2)]
    )
    # Four steps; those that they led to and the first two were judged, three of the six anew.
    assert made.metrics() == {"remembered": 3 / 6, "paid": 1.0}


def test_a_potential_goes_on_to_the_last_bit(trained):
    made = reward(trained[1], shaping="potential")
    made(step(GOOD, BAD, started=[True, True]))
    again = reward(trained[1], shaping="potential")
    state, episode = pickle.loads(pickle.dumps((made.state_dict(), made.episode_state())))
    again.load_state_dict(state)
    again.load_episode_state(episode)
    assert again(step(FAIR, GOOD)).tolist() == made(step(FAIR, GOOD)).tolist()
    # Checkpoints of earlier versions say nothing of potentials.
    del episode["before"]
    reward(trained[1]).load_episode_state(episode)


def test_what_is_no_function_of_the_state_is_no_potential(trained, tmp_path):
    for path, kwargs, told in (
        (trained[1], {"count_power": 1.0}, "which count_power is not"),
        (transitions(tmp_path), {}, "which a model of inputs: transition is not"),
    ):
        with pytest.raises(ConfigurationError, match=told):
            LearnedReward(TEXTS, path, shaping="potential", **kwargs)


def test_a_run_is_rewarded_by_it(trained, tmp_path):
    _, path = trained

    def run(frames, ckpt=None, **kwargs):
        torch.manual_seed(0)
        data = RolloutDataModule(
            "TextMaze-v0",
            num_envs=4,
            rollout_steps=16,
            total_frames=frames,
            env_kwargs={"size": 4},
            rewards=[partial(LearnedReward, ckpt_path=path, count_power=1.0)],
            env_reward_weight=0.0,
            seed=0,
            **kwargs,
        )
        agent = PPO(data.spec, Words)
        return fit_agent(agent, data, ckpt_path=ckpt), data

    whole, _ = run(256)
    assert whole.frames == 256
    half, _ = run(128)
    half.trainer.save_checkpoint(tmp_path / "half.ckpt")
    rest, _ = run(256, str(tmp_path / "half.ckpt"))
    for name, value in whole.state_dict().items():
        assert torch.equal(value, rest.state_dict()[name]), name
    # The run's own checkpoint names the reward's: whoever loads it needs no more than the file.
    loaded = RolloutDataModule.load_from_checkpoint(tmp_path / "half.ckpt")
    assert loaded.rewards[0](TEXTS).ckpt_path == path


@pytest.mark.parametrize(
    ("kwargs", "told"),
    [
        ({"quantile": 1.5}, "quantile must be between 0 and 1"),
        ({"count_power": -1.0}, "count_power"),
        ({"count": "run"}, "count must be 'episode' or 'lifetime'"),
        ({"remember": -1}, "remember"),
        ({"weight": math.inf}, "weight"),
    ],
)
def test_wrong_arguments_get_a_sentence(trained, kwargs, told):
    with pytest.raises(ConfigurationError, match=told):
        LearnedReward(TEXTS, trained[1], **kwargs)


def test_wrong_files_get_a_sentence(trained, tmp_path):
    path = trained[1]
    with pytest.raises(ConfigurationError, match="does not exist"):
        LearnedReward(TEXTS, str(tmp_path / "none.ckpt"))
    numbers = EnvSpec(gym.spaces.Box(-1, 1, (2,)), gym.spaces.Discrete(2), "Numbers-v0")
    with pytest.raises(ConfigurationError, match=r"judges observations of Text.*v0 has Box"):
        LearnedReward(numbers, path)

    def save(agent):
        trainer = make_trainer()
        trainer.strategy.connect(agent)
        trainer.save_checkpoint(tmp_path / "x.ckpt")
        return str(tmp_path / "x.ckpt")

    with pytest.raises(ConfigurationError, match=r"holds a rl_lightning.PPO, which learns no rew"):
        LearnedReward(numbers, save(PPO(numbers)))
    fresh = save(RewardModel(TEXTS, Words))
    with pytest.raises(ConfigurationError, match="holds no statistics of its reward"):
        LearnedReward(TEXTS, fresh)
    LearnedReward(TEXTS, fresh, normalize=False, quantile=None)
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["hyper_parameters"]
    torch.save(checkpoint, tmp_path / "y.ckpt")
    with pytest.raises(ConfigurationError, match="does not say what model it holds"):
        LearnedReward(TEXTS, str(tmp_path / "y.ckpt"))


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("the file's code ran",))


def test_no_code_of_a_file_runs(trained, tmp_path):
    checkpoint = torch.load(trained[1], weights_only=True)
    torch.save({**checkpoint, "trap": Trap()}, tmp_path / "trap.ckpt")
    with pytest.raises(ConfigurationError, match="could run its author's code"):
        LearnedReward(TEXTS, str(tmp_path / "trap.ckpt"))
    for named, told in (
        ("antigravity.Model", "importing 'antigravity' would run its code"),
        ("os.system", "which learns no reward"),
    ):
        checkpoint["hyper_parameters"]["_class_path"] = named
        torch.save(checkpoint, tmp_path / "named.ckpt")
        with pytest.raises(ConfigurationError, match=told):
            LearnedReward(TEXTS, str(tmp_path / "named.ckpt"))


def test_rows_and_kinds_of_observations():
    s = gym.spaces
    space = s.Dict({"t": s.Text(5), "p": s.Tuple([s.Box(0, 1, (2,)), s.Discrete(3)])})
    obs = {"t": ("a", "b", "c"), "p": (np.arange(6.0).reshape(3, 2), np.array([0, 1, 2]))}
    got = select(space, obs, np.array([2, 0]))
    assert got["t"] == ("c", "a")
    assert got["p"][0].tolist() == [[4, 5], [0, 1]]
    assert got["p"][1].tolist() == [2, 0]
    assert same_kind(s.Text(5), s.Text(9))
    assert same_kind(s.Dict({"t": s.Text(5)}), space)
    assert not same_kind(space, s.Dict({"t": s.Text(5)}))
    assert same_kind(s.Box(0, 1, (2,)), s.Box(-5, 5, (2,)))
    assert not same_kind(s.Box(0, 1, (2,)), s.Box(0, 1, (3,)))
    assert not same_kind(s.Discrete(3), s.Discrete(4))
    assert not same_kind(s.Text(3), s.Discrete(4))


def test_public_names():
    assert rl_lightning.RewardModel is RewardModel
    for name in ("RewardModel", "PreferenceDataModule"):
        assert name in rl_lightning.__all__
    assert "RewardModel" in rl_lightning.agents.__all__  # so a configuration may say no more
