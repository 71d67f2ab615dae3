"""Recording: what `predict` writes down is what happened, step by step."""

import json
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import gymnasium as gym
import h5py
import numpy as np
import pytest
import torch
from gymnasium import spaces as s
from probes import MASKS, OBSERVATIONS, show
from training import make_trainer

from rl_lightning import PPO, DictEncoder
from rl_lightning.core.errors import ConfigurationError
from rl_lightning.core.types import EnvSpec
from rl_lightning.data import EpisodeLoader, RolloutDataModule
from rl_lightning.data.recordings.dataset import read_dataset, read_recorded
from rl_lightning.data.recordings.episode import Episode, EpisodeRecorder
from rl_lightning.data.recordings.writer import DatasetWriter
from rl_lightning.envs.make import make_vector_env


class Puppet:
    """Acts by a list of actions, the same in all environments."""

    device = torch.device("cpu")

    def __init__(self, actions):
        self.actions = iter(actions)

    def initial_state(self, count):
        return None

    def preprocess(self, obs):
        return obs

    def read_mask(self, info):
        return None

    def act(self, x, explore, state, mask):
        return {"action": torch.as_tensor(next(self.actions))}


def play(path, env, vectorization, episodes, num_envs, actions, **env_kwargs):
    """Record with a puppet; returns the episodes and what the loader said of them."""
    envs = make_vector_env(env, num_envs, vectorization, env_kwargs)
    spec = EnvSpec(envs.single_observation_space, envs.single_action_space, env)
    puppet = Puppet([np.stack([action] * num_envs) for action in actions])
    with DatasetWriter(path, spec) as writer:
        loader = EpisodeLoader(
            envs,
            lambda: nullcontext(puppet),
            episodes,
            seed=3,
            recorder=EpisodeRecorder(envs, writer.add),
        )
        said = list(loader)
    envs.close()
    return list(read_dataset(path).episodes()), said


@pytest.mark.parametrize("truncate", [True, False])
@pytest.mark.parametrize("vectorization", ["sync", "native"])
def test_recorded_by_hand(vectorization, truncate, tmp_path):
    """Three of the four episodes that two counters play, by the actions 0, 1, 1 and 0, 0, 1.

    A native one spends the fourth step on a reset: its action 0 and its reward are in no episode.
    """
    actions = [0, 1, 1, 0, 0, 1] if vectorization == "sync" else [0, 1, 1, 0, 0, 0, 1]
    path = tmp_path / "data.hdf5"
    episodes, said = play(
        path, "Counter-v0", vectorization, 3, 2, actions, length=3, truncate=truncate
    )
    assert [e["env"] for e in said] == [0, 1, 0]
    for episode, taken in zip(episodes, [[0, 1, 1], [0, 1, 1], [0, 0, 1]], strict=True):
        assert episode.observations.tolist() == [[0], [1], [2], [3]]
        assert episode.actions.tolist() == taken
        assert episode.rewards.tolist() == [1, 2, 3]
        ends, never = [False, False, True], [False] * 3
        assert episode.truncations.tolist() == (ends if truncate else never)
        assert episode.terminations.tolist() == (never if truncate else ends)
    assert read_dataset(path).mean_return == 6


@pytest.mark.parametrize("vectorization", ["sync", "native"])
@pytest.mark.parametrize("observation", OBSERVATIONS)
@pytest.mark.parametrize("action", ["discrete", "box"])
def test_recorded_observations_of_every_kind(observation, action, vectorization, tmp_path):
    """The delayed probe is in state 0, then 1, then ends in 1, and pays 0, then 1."""
    space = OBSERVATIONS[observation]
    pair = {"discrete": [1, 0], "box": [np.array([x], np.float32) for x in (0.25, -1)]}[action]
    actions = pair * 2 if vectorization == "sync" else [*pair, pair[0], *pair]
    episodes, _ = play(
        tmp_path / "data.hdf5",
        "Probe-v0",
        vectorization,
        4,
        2,
        actions,
        task="delayed",
        observation=observation,
        action=action,
    )
    states = [show(observation, state) for state in (0, 1, 1)]
    for episode in episodes:
        np.testing.assert_equal(episode.observations, gathered(space, states))
        given = {"discrete": [1, 0], "box": [[0.25], [-1.0]]}[action]  # within its bounds
        np.testing.assert_equal(episode.actions, np.array(given))
        assert episode.rewards.tolist() == [0, 1]
        assert episode.terminations.tolist() == [False, True]
    assert len(episodes) == 4


@pytest.mark.parametrize("vectorization", ["sync", "native"])
@pytest.mark.parametrize("action", MASKS)
def test_recorded_action_masks(action, vectorization, tmp_path):
    """The probe's masks alternate, so that an episode of three steps ends with another than the
    next one begins with."""
    first, second = {
        "discrete": [0, 1],
        "multi_discrete": [np.array([1, 2]), np.array([0, 0])],
        "multi_binary": [np.array([1, 0], np.int8), np.array([0, 1], np.int8)],
    }[action]
    masks, three = np.array(MASKS[action], bool), [first, second, first]
    actions = three * 2 if vectorization == "sync" else [*three, first, *three]
    made = {"task": "truncated", "horizon": 3, "action": action, "mask": True}
    episodes, _ = play(tmp_path / "data.hdf5", "Probe-v0", vectorization, 4, 2, actions, **made)
    assert len(episodes) == 4
    for episode in episodes:
        np.testing.assert_array_equal(episode.action_masks, masks[[0, 1, 0, 1]])


class Masked(gym.Env):
    """Three steps. `odd` environments may report other masks than even ones, or none."""

    observation_space = s.Box(-1, 1, (1,), np.float32)

    def __init__(self, masks, odd_masks=None, action_space=None):
        self.masks, self.odd_masks = masks, odd_masks
        self.action_space = action_space or s.Discrete(3)

    def info(self):
        masks = self.odd_masks if self.odd else self.masks
        return {} if masks is None else {"action_mask": masks[self.steps]}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.odd = seed % 2
        self.steps = 0
        return np.zeros(1, np.float32), self.info()

    def step(self, action):
        self.steps += 1
        return np.zeros(1, np.float32), 1.0, self.steps == 3, False, self.info()


gym.register("Masked-v0", entry_point=Masked)
A, B, ALL = [1, 0, 1], [0, 1, 1], [1, 1, 1]


@pytest.mark.parametrize(
    ("kind", "odd", "expected"),
    [
        (list, None, None),
        (np.array, None, None),  # a vector env says in `_action_mask` which rows mean something
        (list, [A, A, B, None], [A, A, B, ALL]),
        (np.array, [B] * 4, [B] * 4),
    ],
)
def test_each_environment_reports_for_itself(kind, odd, expected, tmp_path):
    masks = [A, B, A, B]
    made = {"masks": list(map(kind, masks)), "odd_masks": odd}
    if odd is not None and None not in odd:
        made["odd_masks"] = list(map(kind, odd))
    episodes, said = play(tmp_path / "data.hdf5", "Masked-v0", "sync", 4, 2, [2] * 6, **made)
    for episode, about in zip(episodes, said, strict=True):
        # The loader's seed is 3: the first environment's is odd.
        wanted = masks if about["env"] else expected
        found = episode.action_masks.astype(int).tolist()
        assert found == ([ALL] * 4 if wanted is None else wanted)


def test_masks_of_several_parts_come_one_after_the_other(tmp_path):
    """Gymnasium's own form for MultiDiscrete, a tuple of arrays."""
    parts = (np.array([1, 0], np.int8), np.array([0, 1, 1], np.int8))
    made = {"masks": [parts] * 4, "action_space": s.MultiDiscrete([2, 3])}
    actions = [np.array([0, 1])] * 3
    made["odd_masks"] = made["masks"]
    (episode, _), _ = play(tmp_path / "data.hdf5", "Masked-v0", "sync", 2, 2, actions, **made)
    assert episode.action_masks.astype(int).tolist() == [[1, 0, 0, 1, 1]] * 4


def test_masks_of_changing_shape_are_refused(tmp_path):
    made = {"masks": [A, A, [1, 1], A], "odd_masks": [A] * 4}
    with pytest.raises(ConfigurationError, match="changes its shape within an episode"):
        play(tmp_path / "data.hdf5", "Masked-v0", "sync", 2, 2, [2] * 3, **made)


def gathered(space, rows):
    if isinstance(space, s.Dict):
        return {key: gathered(space[key], [row[key] for row in rows]) for key in space}
    if isinstance(space, s.Tuple):
        return tuple(gathered(entry, [row[i] for row in rows]) for i, entry in enumerate(space))
    return rows if isinstance(rows[0], str) else np.array(rows)


def predict(path, limit=1.0, explore=True, **data):
    """Episodes that the trainer's `predict` returned."""
    module = RolloutDataModule(
        "CartPole-v1", record=str(path), val_num_envs=2, val_explore=explore, **data
    )
    agent, trainer = PPO(module.spec), make_trainer(limit_predict_batches=limit)
    return trainer.predict(agent, module)


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_what_was_recorded_happens_again(vectorization, tmp_path):
    """The recorded actions lead a fresh environment through the recorded observations."""
    path = tmp_path / "data.hdf5"
    said = predict(path, val_episodes=5, val_seed=40, vectorization=vectorization)
    episodes = list(read_dataset(path).episodes())
    assert [e.rewards.sum() for e in episodes] == [e["return"] for e in said]
    assert [len(e) for e in episodes] == [e["length"] for e in said]
    env = gym.make("CartPole-v1")
    first, _ = env.reset(seed=40 + 2_000_000)
    (mine,) = [e for e in episodes if np.array_equal(e.observations[0], first)]
    for t, action in enumerate(mine.actions):
        obs, reward, terminated, truncated, _ = env.step(action)
        assert np.array_equal(obs, mine.observations[t + 1])
        found = (mine.rewards[t], mine.terminations[t], mine.truncations[t])
        assert found == (reward, terminated, truncated)
    assert terminated
    assert len(set(mine.actions.tolist())) == 2


def test_only_what_the_trainer_was_given_is_recorded(tmp_path):
    path = tmp_path / "data.hdf5"
    said = predict(path, limit=2, val_episodes=6)
    assert len(said) == read_dataset(path).total_episodes == 2
    with pytest.warns(UserWarning, match="holds 2 episodes, and new ones come behind them"):
        predict(path, val_episodes=3)
    assert read_dataset(path).total_episodes == 5  # behind those that were there
    assert list(tmp_path.iterdir()) == [path]


def test_only_predict_records(tmp_path):
    module = RolloutDataModule("Counter-v0", record=str(tmp_path / "data.hdf5"))
    trainer = make_trainer(limit_val_batches=1.0)
    trainer.validate(PPO(module.spec), module, verbose=False)
    trainer.test(PPO(module.spec), module, verbose=False)
    assert not list(tmp_path.iterdir())


def test_asking_for_the_loader_again_changes_nothing(tmp_path):
    module = RolloutDataModule("Counter-v0", record=str(tmp_path / "data.hdf5"))
    module.trainer = make_trainer()
    assert module.predict_dataloader() is module.predict_dataloader()
    module.teardown("predict")
    assert [p.name for p in tmp_path.iterdir()] == ["data.hdf5"]


def test_several_ranks_cannot_record(tmp_path):
    module = RolloutDataModule("Counter-v0", record=str(tmp_path / "data.hdf5"))
    ranks = {"world_size": 2, "global_rank": 1, "limit_predict_batches": 1.0}
    module.trainer = SimpleNamespace(**ranks)  # type: ignore[assignment]
    with pytest.raises(ConfigurationError, match=r"data.record: 2 ranks.*trainer.devices: 1"):
        module.predict_dataloader()


class Odd(gym.Env):
    """Shows a number and something that no layout of recordings knows."""

    action_space = s.Discrete(2, dtype=np.uint8)

    def __init__(self, odd=None):
        inner = s.Box(-1, 1, (2,), np.float32)
        spaces = {
            "sequence": s.Sequence(inner),
            "graph": s.Graph(inner, s.Discrete(3)),
            "one of": s.OneOf([s.Discrete(2), inner]),
        }
        entries = {"x": s.Box(-1, 1, (1,), np.float32)}
        if odd is not None:
            entries["odd"] = s.Dict(inner=s.Tuple([spaces[odd]]))
        self.observation_space = s.Dict(entries)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self.steps += 1
        return self.observation_space.sample(), 1.0, self.steps == 3, False, {}


gym.register("Odd-v0", entry_point=Odd)


@pytest.mark.parametrize("odd", ["sequence", "graph", "one of"])
def test_an_ignored_entry_costs_nothing_but_the_recording(odd, tmp_path):
    """Nested, too: it trains, is written down in transcripts, and comes back from a checkpoint."""

    def data(**more):
        kwargs = {"env_kwargs": {"odd": odd}, "num_envs": 2, "val_num_envs": 2, "val_episodes": 2}
        return RolloutDataModule("Odd-v0", rollout_steps=8, total_frames=16, **kwargs, **more)

    module = data()
    encoder = partial(DictEncoder, ignore=["odd"])
    agent, trainer = PPO(module.spec, encoder=encoder), make_trainer(limit_val_batches=1.0)
    trainer.fit(agent, module)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = PPO.load_from_checkpoint(tmp_path / "last.ckpt")
    assert again.spec == agent.spec == module.spec
    assert again.spec.action_space.dtype == np.uint8
    (said,) = make_trainer(limit_val_batches=1.0).validate(again, data(), verbose=False)
    assert said["val/return"] == 3
    (episode, _) = make_trainer().predict(again, data())
    assert "odd: " in episode["transcript"][0]["observation"]
    refused = data(record=str(tmp_path / "data.hdf5"))
    name = {"sequence": "Sequence", "graph": "Graph", "one of": "OneOf"}[odd]
    with pytest.raises(
        ConfigurationError, match=f"observation_space/odd/inner/0 is a space of type {name}"
    ):
        make_trainer().predict(again, refused)
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_actions_of_narrow_types_are_recorded(tmp_path):
    module = RolloutDataModule("Odd-v0", record=str(tmp_path / "data.hdf5"), val_episodes=2)
    make_trainer().predict(PPO(module.spec, encoder=DictEncoder), module)
    dataset = read_dataset(tmp_path / "data.hdf5")
    assert dataset.spec.action_space == Odd.action_space
    assert next(dataset.episodes()).actions.dtype == np.uint8
    with h5py.File(tmp_path / "data.hdf5", "r+") as file:  # an earlier version said so
        said = json.loads(file.attrs["action_space"]) | {"dtype": "int64"}
        file.attrs["action_space"] = json.dumps(said)
    assert read_recorded(tmp_path / "data.hdf5", module.spec).total_episodes == 2


@pytest.mark.parametrize("later", [False, True])
def test_masks_of_another_width_than_an_earlier_episode_s(later, tmp_path):
    path, spec = tmp_path / "data.hdf5", EnvSpec(s.Discrete(1), s.Discrete(2))
    ends, zeros = np.array([False, True]), np.zeros(2, int)

    def episode(width):
        shown, masks = np.zeros(3, int), np.ones((3, width), bool)
        return Episode(shown, zeros, np.ones(2), ends, ends & False, masks)

    writer = DatasetWriter(path, spec)
    writer.add(episode(2))
    if later:
        writer.close()
        writer = DatasetWriter(path, spec)
    with pytest.raises(ConfigurationError, match=r"3 actions wide, but .* earlier episode 2"):
        writer.add(episode(3))
    writer.close()
    assert read_dataset(path).total_episodes == 1
