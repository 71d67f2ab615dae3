"""Files of episodes: what is written, what is read, and what is refused."""

import json
import signal
import subprocess
import sys
from functools import partial

import gymnasium as gym
import h5py
import numpy as np
import pytest
from PIL import Image

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.core.types import EnvSpec
from rl_lightning.data.recordings.dataset import Dataset, read_dataset
from rl_lightning.data.recordings.episode import Episode
from rl_lightning.data.recordings.writer import DatasetWriter

s = gym.spaces
NESTED = s.Dict(
    {
        "words": s.Tuple((s.Text(9, charset="abé "), s.Discrete(5, start=-2))),
        "picture": s.Box(0, 255, (4, 5, 3), np.uint8),
    }
)


def same(a, b):
    """Equal structure, values, dtypes and shapes."""
    if a is None or b is None:
        return a is b
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, list):
        return a == b
    return a.dtype == b.dtype and np.array_equal(a, b)


def steps(*rewards, **others):
    """An episode of a `Box(-inf, inf, (2,))` and two actions that terminates."""
    count = len(rewards)
    parts = {
        "observations": np.arange(2 * count + 2, dtype=np.float32).reshape(-1, 2),
        "actions": np.arange(count) % 2,
        "rewards": np.array(rewards, float),
        "terminations": np.arange(count) == count - 1,
        "truncations": np.zeros(count, bool),
    }
    return Episode(**{**parts, **others})


SPEC = EnvSpec(s.Box(-np.inf, np.inf, (2,), np.float32), s.Discrete(2), "Two-v0")


def write(path, *episodes, spec=SPEC):
    with DatasetWriter(path, spec) as writer:
        for episode in episodes:
            writer.add(episode)
    return path


# --- there and back -----------------------------------------------------------------------------

ROWS = {  # three rows of each space: an episode of two steps
    "box": (s.Box(-1, 1, (2, 2), np.float64), np.linspace(-1, 1, 12).reshape(3, 2, 2)),
    "image": (s.Box(0, 255, (40, 40, 3), np.uint8), np.arange(14400).reshape(3, 40, 40, 3) % 251),
    "discrete": (s.Discrete(3, start=7), np.array([7, 9, 8])),
    "multi_binary": (s.MultiBinary(2), np.array([[0, 1], [1, 1], [0, 0]])),
    "text": (s.Text(20, charset="abé "), ["a", "", "b é"]),
    "tuple": (s.Tuple((s.Discrete(2), s.Text(2))), (np.array([0, 1, 1]), ["x", "yy", "z"])),
    "nested": (
        NESTED,
        {
            "words": (["a", "é", "b b"], np.array([-2, 0, 2])),
            "picture": np.arange(180).reshape(3, 4, 5, 3),
        },
    ),
}


def fitted(space, rows):
    """Rows in the dtypes of their space."""
    if isinstance(space, s.Dict):
        return {key: fitted(space[key], rows[key]) for key in space}
    if isinstance(space, s.Tuple):
        return tuple(map(fitted, space, rows))
    return rows if isinstance(rows, list) else rows.astype(space.dtype)


@pytest.mark.parametrize("kind", ROWS)
def test_episodes_come_back_as_they_were(kind, tmp_path):
    space, rows = ROWS[kind]
    observations = fitted(space, rows)
    actions = s.MultiDiscrete([2, 3])
    spec = EnvSpec(space, actions, "Some-v3")
    first = steps(0.5, -1, observations=observations, actions=np.array([[0, 2], [1, 1]]))
    path = write(tmp_path / "new" / "folder" / "data.hdf5", first, spec=spec)
    dataset = read_dataset(str(path))
    assert dataset.spec == spec
    assert dataset.spec.id == "Some-v3"
    (read,) = dataset.episodes()
    assert all(same(value, vars(read)[name]) for name, value in vars(first).items())
    assert read.rewards.dtype == np.float64
    assert read.terminations.dtype == read.truncations.dtype == bool
    assert len(read) == 2


def test_action_masks_come_back(tmp_path):
    """Of an episode without any, among others that have them, everything is allowed."""
    masks = np.array([[1, 0], [1, 1], [0, 1]], bool)
    path = write(
        tmp_path / "data.hdf5", steps(1, 2), steps(1, 2, action_masks=masks.astype(np.int8))
    )
    dataset = read_dataset(path)
    assert dataset.mask_dim == 2
    first, second = dataset.episodes()
    assert same(first.action_masks, np.ones((3, 2), bool))
    assert same(second.action_masks, masks)
    with h5py.File(path) as file:  # where Minari has them
        assert "infos" not in file["episode_0"]
        assert same(file["episode_1/infos/action_mask"][()], masks)
    none = read_dataset(write(tmp_path / "none.hdf5", steps(1, 2)))
    assert none.mask_dim == 0
    assert next(none.episodes()).action_masks is None


@pytest.mark.parametrize("shape", [(2, 2), (3,), (4, 2)])
def test_masks_of_other_lengths_are_refused(shape, tmp_path):
    with pytest.raises(
        ConfigurationError, match=r"action masks have the shape .* must be \[3, act"
    ):
        write(tmp_path / "data.hdf5", steps(1, 2, action_masks=np.ones(shape, bool)))


def test_many_episodes_in_order_and_their_statistics(tmp_path):
    path = write(tmp_path / "data.hdf5", *(steps(*[float(i)] * (i + 1)) for i in range(12)))
    dataset = read_dataset(path)
    assert [episode.rewards[0] for episode in dataset.episodes()] == list(range(12))
    assert dataset.total_episodes == 12
    assert dataset.total_steps == 78
    assert dataset.mean_return == pytest.approx(sum(i * (i + 1) for i in range(12)) / 12)
    with h5py.File(path) as file:
        assert (file.attrs["total_episodes"], file.attrs["total_steps"]) == (12, 78)
        assert dict(file["episode_3"].attrs) == {"id": 3, "total_steps": 4}


def test_episodes_are_read_one_at_a_time(tmp_path):
    """A bad second episode does not keep the first from being read."""
    path = write(tmp_path / "data.hdf5", steps(1), steps(2))
    with h5py.File(path, "a") as file:
        del file["episode_1/actions"]
    episodes = read_dataset(path).episodes()
    assert next(episodes).rewards == [1]
    with pytest.raises(ConfigurationError, match="episode_1 has no 'actions'"):
        next(episodes)


def test_a_second_writer_adds_to_the_file(tmp_path):
    path = write(tmp_path / "data.hdf5", steps(1))
    write(path, steps(2, 3))
    assert [list(e.rewards) for e in read_dataset(path).episodes()] == [[1], [2, 3]]
    assert list(tmp_path.iterdir()) == [path]


# --- Minari's own ---------------------------------------------------------------------------------


def minari(folder, observations, **metadata):
    """A data set as Minari 0.5 lays it out: one episode of two steps."""
    (folder / "data").mkdir(parents=True)
    with h5py.File(folder / "data" / "main_data.hdf5", "w") as file:
        group = file.create_group("episode_0")
        group.attrs.update({"id": 0, "seed": 5, "total_steps": 2})
        put(group, "observations", observations)
        group["actions"] = np.array([1, 0])
        group["rewards"] = np.array([0.25, 0.5])
        group["terminations"] = np.array([False, False])
        group["truncations"] = np.array([False, True])
        group.create_group("infos")["speed"] = np.array([1.0, 2.0, 3.0])
    if metadata:
        (folder / "data" / "metadata.json").write_text(json.dumps(metadata))
    return folder


def put(group, name, value):
    if isinstance(value, dict):
        for key, entry in value.items():
            put(group.require_group(name), key, entry)
    elif isinstance(value, list):
        group.create_dataset(name, data=value, dtype=h5py.string_dtype())
    else:
        group[name] = value


BOX = {"type": "Box", "dtype": "float32", "shape": [1], "low": [-float("inf")], "high": [1.0]}
TEXT = {"type": "Text", "max_length": 5, "min_length": 1, "charset": "abc"}
BIT = {"type": "Discrete", "dtype": "int64", "start": 0, "n": 2}
NUMBERS = {"type": "MultiDiscrete", "dtype": "int64", "nvec": [4, 4], "start": [0, 0]}
BITS = {"type": "MultiBinary", "n": 2}


def test_minari_layout(tmp_path):
    """Without metadata the structure tells dicts, tuples and texts; with it, their spaces too."""
    rows = {
        "a": {"_index_0": np.array([[0], [1], [2]], np.float64), "_index_1": ["a", "b", "c"]},
        "b": np.array([[0, 1], [2, 3], [3, 0]]),
        "c": np.zeros((3, 2), np.int8),
    }
    bare = read_dataset(minari(tmp_path / "bare", rows))
    assert bare.spec is None
    (episode,) = bare.episodes()
    assert episode.observations["a"][0].dtype == np.float64
    assert episode.observations["a"][1] == ["a", "b", "c"]
    assert (bare.total_steps, bare.mean_return) == (2, 0.75)

    space = {
        "a": {"type": "Tuple", "subspaces": [BOX, TEXT]},
        "b": NUMBERS,
        "c": BITS,
    }
    told = read_dataset(
        minari(
            tmp_path / "told",
            rows,
            observation_space=json.dumps({"type": "Dict", "subspaces": space}),
            action_space=json.dumps(BIT),
            env_spec=json.dumps({"id": "Some-v1", "entry_point": "x:Y"}),
            data_format="hdf5",
        )
        / "data"
    )
    box = s.Box(-np.inf, 1, (1,), np.float32)
    expected = s.Dict(
        {
            "a": s.Tuple((box, s.Text(5, charset="abc"))),
            "b": s.MultiDiscrete([4, 4]),
            "c": s.MultiBinary(2),
        }
    )
    assert told.spec == EnvSpec(expected, s.Discrete(2))
    assert told.spec.id == "Some-v1"
    (episode,) = told.episodes()
    assert episode.observations["a"][0].dtype == np.float32
    assert list(episode.actions) == [1, 0]
    assert list(episode.truncations) == [False, True]


MASK = np.array([[1, 0], [0, 1], [1, 1]], np.int8)


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (MASK, MASK),
        ({"_index_0": MASK, "_index_1": MASK[:, :1]}, np.concatenate([MASK, MASK[:, :1]], 1)),
        (MASK[:2], None),
        (np.zeros((3, 2, 2)), None),
        (np.zeros(3), None),
    ],
)
def test_masks_of_minari(mask, expected, tmp_path):
    """Those of several parts are one after the other, and what is no T+1 rows is passed over."""
    folder = minari(tmp_path / "set", np.zeros((3, 1), np.float32))
    with h5py.File(folder / "data" / "main_data.hdf5", "r+") as file:
        put(file["episode_0/infos"], "action_mask", mask)
    dataset = read_dataset(folder)
    assert dataset.mask_dim == (0 if expected is None else expected.shape[1])
    (episode,) = dataset.episodes()
    assert same(episode.action_masks, None if expected is None else expected.astype(bool))


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("lengths", ["equal", "different"])
def test_images_of_minari(told, lengths, tmp_path):
    """Rows are the bytes of a JPEG; of one length they make an array, else a ragged one."""
    path = tmp_path / "one.jpeg"
    Image.new("RGB", (40, 36), (200, 200, 200)).save(path)
    row = np.frombuffer(path.read_bytes(), np.uint8)
    frames = np.stack([row] * 3)
    image = {"type": "Box", "dtype": "uint8", "shape": [36, 40, 3]}
    image |= {
        key: np.full((36, 40, 3), bound).tolist() for key, bound in (("low", 0), ("high", 255))
    }
    metadata = {"observation_space": json.dumps(image), "action_space": json.dumps(BIT)}
    folder = minari(tmp_path / "set", frames, **metadata if told else {})
    if lengths == "different":
        with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
            del file["episode_0/observations"]
            ragged = file.create_dataset(
                "episode_0/observations", (3,), dtype=h5py.vlen_dtype(np.uint8)
            )
            for i in range(3):
                ragged[i] = np.concatenate([row, np.zeros(i, np.uint8)])
    (episode,) = read_dataset(folder).episodes()
    assert episode.observations.shape == (3, 36, 40, 3)
    assert (episode.observations == 200).all()


def test_bytes_that_look_like_an_image_but_are_what_the_space_says(tmp_path):
    spec = EnvSpec(s.Box(0, 255, (4,), np.uint8), s.Discrete(2))
    observations = np.array([[0xFF, 0xD8, 0xFF, i] for i in range(3)], np.uint8)
    (episode,) = read_dataset(
        write(tmp_path / "data.hdf5", steps(0, 1, observations=observations), spec=spec)
    ).episodes()
    assert np.array_equal(episode.observations, observations)


# --- what is refused ------------------------------------------------------------------------------


def spoiled(path, **entries):
    """A good file of one episode of two steps in which `entries` are other ones, or missing."""
    write(path, steps(1, 2))
    with h5py.File(path, "a") as file:
        for name, value in entries.items():
            del file["episode_0"][name]
            if value is not None:
                put(file["episode_0"], name, value)
    return path


WRONG = {
    "missing": ({"rewards": None}, " has no 'rewards'; it has actions, observations"),
    "no final observation": (
        {"observations": np.zeros((2, 2), np.float32)},
        "observations has 2 rows; with 2 rewards it must have 3, the final observation",
    ),
    "actions": ({"actions": np.zeros(3, int)}, "actions has 3 rows; with 2 rewards it must have 2"),
    "flags": ({"truncations": np.zeros(1, bool)}, r"the shape \[T\].*not \[2\], \[2\], \[1\]"),
    "columns": ({"rewards": np.zeros((2, 1))}, r"the shape \[T\].*not \[2, 1\], \[2\], \[2\]"),
    "empty": (
        {name: np.zeros(0) for name in ("rewards", "terminations", "truncations")},
        "T at least 1",
    ),
    "nan": ({"rewards": np.array([0, np.nan])}, "the reward of step 1 is nan"),
    "inf": ({"rewards": np.array([-np.inf, 0])}, "the reward of step 0 is -inf"),
    "shape": ({"observations": np.zeros((3, 4), np.float32)}, r"rows of shape \(4,\).*Box"),
    "dtype": ({"actions": np.zeros(2)}, r"dtype float64, not those of Discrete\(2\)"),
    "text": ({"observations": ["a", "b", "c"]}, "observations is text, not those of Box"),
    "entries": ({"observations": {"a": np.zeros(3)}}, r"entries \['a'\], not those of Box"),
    "tuple": ({"actions": {"_index_0": np.zeros(2)}}, "has 1 entries, not those of Discrete"),
    "scalar": ({"actions": np.array(1)}, "actions has 0 rows"),
}


@pytest.mark.parametrize("case", WRONG)
def test_an_episode_that_does_not_fit(case, tmp_path):
    entries, message = WRONG[case]
    with pytest.raises(ConfigurationError, match=f"data.hdf5: episode_0.*{message}"):
        list(read_dataset(spoiled(tmp_path / "data.hdf5", **entries)).episodes())
    if case == "missing":
        return
    given = {
        name: tuple(value.values()) if "_index_0" in value else value
        for name, value in entries.items()
    }
    writer = DatasetWriter(tmp_path / "other.hdf5", SPEC)
    with pytest.raises(ConfigurationError, match=f"episode 0 for .*other.hdf5: .*{message}"):
        writer.add(steps(1, 2, **given))


def test_files_that_are_none(tmp_path):
    def refused(path, message):
        with pytest.raises(ConfigurationError, match=message):
            read_dataset(path)

    refused(tmp_path / "no.hdf5", "there is no file .*no.hdf5$")
    refused(tmp_path, "no .*data/main_data.hdf5; give an HDF5 file.*not Arrow")
    text = tmp_path / "text.hdf5"
    text.write_text("episode_0")
    refused(text, "text.hdf5 is no HDF5 file")
    other = tmp_path / "other.hdf5"
    with h5py.File(other, "w") as file:
        file["observations"] = np.zeros(3)  # all episodes in one, as D4RL has it
    refused(other, "holds no group episode_0")
    whole = write(tmp_path / "whole.hdf5", *[steps(*range(99))] * 9)
    whole.write_bytes(whole.read_bytes()[:5000])
    refused(whole, "cannot be read, it may be incomplete")
    refused(
        minari(tmp_path / "set", np.zeros(3), observation_space="{", action_space="{"), "spaces"
    )
    strange = {"observation_space": '{"type": "Graph"}', "action_space": json.dumps(BIT)}
    refused(minari(tmp_path / "graph", np.zeros(3), **strange), "unknown kind of space: 'Graph'")


def test_without_h5py(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    for use in (read_dataset, partial(DatasetWriter, spec=SPEC)):
        with pytest.raises(ConfigurationError, match=r'pip install "rl-lightning\[offline\]"'):
            use(tmp_path / "data.hdf5")
    code = (
        "import sys, rl_lightning.data, rl_lightning.cli.command; assert 'h5py' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_pillow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    rows = np.tile(np.array([0xFF, 0xD8, 0xFF, 0], np.uint8), (3, 1))
    with pytest.raises(ConfigurationError, match="pip install pillow"):
        list(read_dataset(minari(tmp_path / "set", rows)).episodes())


def test_another_environment_is_refused(tmp_path):
    path = write(tmp_path / "data.hdf5", steps(1))
    dataset = read_dataset(path)
    dataset.check(SPEC)
    closer = EnvSpec(s.Box(-1, 1, (2,), np.float32), SPEC.action_space)
    dataset.check(closer)  # bounds of observations are no reason
    others = {
        "observation_space": EnvSpec(s.Box(-1, 1, (3,), np.float32), SPEC.action_space, "Other-v0"),
        "action_space": EnvSpec(SPEC.observation_space, s.Discrete(3), "Other-v0"),
    }
    for name, spec in others.items():
        message = f"recorded with the {name} .*but 'Other-v0' has .*wrappers"
        with pytest.raises(ConfigurationError, match=message):
            dataset.check(spec)
        with pytest.raises(ConfigurationError, match=message):
            DatasetWriter(path, spec)
    bound = [EnvSpec(SPEC.observation_space, s.Box(-1, high, (1,))) for high in (1, 2)]
    box = write(tmp_path / "box.hdf5", spec=bound[0])
    with pytest.raises(ConfigurationError, match="action_space"):
        DatasetWriter(box, bound[1])
    Dataset(path, None, [0]).check(others["action_space"])
    letters = [EnvSpec(SPEC.observation_space, s.Text(3, charset=x)) for x in ("abc", "cba")]
    DatasetWriter(write(tmp_path / "text.hdf5", spec=letters[0]), letters[1]).close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["box.hdf5", "data.hdf5", "text.hdf5"]


def test_places_that_cannot_be_written_to(tmp_path):
    with pytest.raises(ConfigurationError, match="is a folder"):
        DatasetWriter(tmp_path, SPEC)
    theirs = minari(tmp_path / "set", np.zeros((3, 2))) / "data" / "main_data.hdf5"
    with pytest.raises(ConfigurationError, match="does not say its spaces"):
        DatasetWriter(theirs, SPEC)
    sequence = EnvSpec(s.Sequence(s.Discrete(2)), s.Discrete(2))
    with pytest.raises(ConfigurationError, match=r"cannot be recorded.*Sequence"):
        DatasetWriter(tmp_path / "data.hdf5", sequence)


# --- interruptions --------------------------------------------------------------------------------


@pytest.mark.parametrize("existing", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_an_interrupted_process_says_so(existing, tmp_path):
    """What has the file's name is whole: the one that was there before, or none."""
    path, part = tmp_path / "data.hdf5", tmp_path / "data.hdf5.part"
    if existing:
        write(path, steps(1))
    before = path.read_bytes() if existing else b""
    code = (
        "import os, signal, sys; sys.path[:0] = ['tests', 'tests/data']\n"
        "from test_dataset import *\n"
        f"writer = DatasetWriter({str(path)!r}, SPEC)\n"
        "writer.add(steps(5, 6))\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code])
    assert done.returncode == -signal.SIGKILL
    kept = [e.rewards.tolist() for e in read_dataset(part).episodes()]
    assert kept == ([[1], [5, 6]] if existing else [[5, 6]])
    if existing:
        assert path.read_bytes() == before
    else:
        with pytest.raises(
            ConfigurationError, match=r"no file .*; .*\.part is what an interrupted"
        ):
            read_dataset(path)
    with pytest.raises(ConfigurationError, match=r"\.part exists.*delete it, or rename it"):
        DatasetWriter(path, SPEC)


def test_an_exception_leaves_the_finished_episodes_aside(tmp_path):
    path = write(tmp_path / "data.hdf5", steps(1))
    with pytest.raises(ConfigurationError, match="reward of step 0"):
        write(path, steps(2), steps(np.nan))
    assert read_dataset(path).total_episodes == 1
    assert read_dataset(tmp_path / "data.hdf5.part").total_episodes == 2


def test_half_an_episode_is_none(tmp_path, monkeypatch):
    """What fails while an episode is written leaves those before it."""
    path = tmp_path / "data.hdf5"
    with DatasetWriter(path, SPEC) as writer:
        writer.add(steps(1))
        with monkeypatch.context() as patch:
            create = h5py.Group.create_dataset
            patch.setattr(
                h5py.Group,
                "create_dataset",
                lambda group, name, **kw: 1 / 0 if name == "rewards" else create(group, name, **kw),
            )
            with pytest.raises(ZeroDivisionError):
                writer.add(steps(2))
        writer.add(steps(3))
    assert [e.rewards[0] for e in read_dataset(path).episodes()] == [1, 3]
