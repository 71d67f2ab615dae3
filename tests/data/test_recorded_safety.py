"""Recordings of strangers: nothing of another file, nothing larger than the file, one sentence."""

import io
import json
import resource
import tracemalloc
from contextlib import suppress
from functools import partial

import gymnasium as gym
import h5py
import numpy as np
import pytest
from PIL import Image

from rl_lightning.core.errors import ConfigurationError, RunError
from rl_lightning.core.types import EnvSpec
from rl_lightning.data.recordings import hdf5 as hdf5_safety
from rl_lightning.data.recordings.dataset import read_dataset, read_recorded
from rl_lightning.data.recordings.episode import Episode
from rl_lightning.data.recordings.writer import DatasetWriter

s = gym.spaces
SPEC = EnvSpec(s.Dict(x=s.Box(-1, 1, (2,), np.float32)), s.Discrete(2), "Two-v0")
STEPS = 3


def episode(**others):
    ends = np.arange(STEPS) == STEPS - 1
    parts = {
        "observations": {"x": np.zeros((STEPS + 1, 2), np.float32)},
        "actions": np.zeros(STEPS, int),
        "rewards": np.ones(STEPS),
        "terminations": ends,
        "truncations": ~ends & False,
    }
    return Episode(**{**parts, **others})


@pytest.fixture
def path(tmp_path):
    """Two sound episodes."""
    path = tmp_path / "recorded.hdf5"
    with DatasetWriter(path, SPEC) as writer:
        writer.add(episode())
        writer.add(episode(action_masks=np.ones((STEPS + 1, 2), bool)))
    return path


def edited(path, *edits):
    with h5py.File(path, "r+") as file:
        for edit in edits:
            edit(file)
    return path


def put(name, value):
    def edit(file):
        if name in file:
            del file[name]
        file[name] = value

    return edit


def make(name, *args, **kwargs):
    def edit(file):
        del file[name]
        file.create_dataset(name, *args, **kwargs)

    return edit


def refused(read, *words):
    """The one sentence with which something is refused."""
    with pytest.raises(ConfigurationError) as caught:
        read()
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 700
    for word in ("recorded.hdf5", *words):
        assert word in message, message
    return message


def read(path):
    dataset = read_recorded(path, SPEC)
    assert len(list(dataset.episodes())) == dataset.total_episodes
    return dataset.fingerprint


# --- other files --------------------------------------------------------------------------------


X = "episode_0/observations/x"


def links(folder):
    """Ways to name a private file of the reader's machine."""
    private = folder / "private.hdf5"
    with h5py.File(private, "w") as file:
        file["x"] = np.full((STEPS + 1, 2), 0.5, np.float32)
        file["group/x"] = file["x"]
    (folder / "private.bin").write_bytes(np.full(8, 0.5, np.float32).tobytes())

    def through(file):
        file["way"] = h5py.ExternalLink(str(private), "/")
        put(X, h5py.SoftLink("/way/x"))(file)

    def virtual(source, inside="x"):
        def edit(file):
            layout = h5py.VirtualLayout((STEPS + 1, 2), np.float32)
            layout[:] = h5py.VirtualSource(source, inside, (STEPS + 1, 2))
            del file[X]
            file.create_virtual_dataset(X, layout)

        return edit

    external = h5py.ExternalLink(str(private), "/x")
    return {
        "external link": put(X, external),
        "external link in place of a group": put(
            "episode_0/observations", h5py.ExternalLink(str(private), "/group")
        ),
        "external link in place of an episode": put(
            "episode_0", h5py.ExternalLink(str(private), "/group")
        ),
        "soft link through an external one": through,
        "soft link": put(X, h5py.SoftLink("/episode_1/observations/x")),
        "external storage": make(
            X, (STEPS + 1, 2), "f4", external=[(str(folder / "private.bin"), 0, 32)]
        ),
        "virtual data set": virtual(str(private)),
        "virtual data set of the same file": virtual(".", "/episode_1/observations/x"),
        "external rewards": put("episode_0/rewards", external),
        "external infos": put("episode_1/infos", external),
        "external masks": put("episode_1/infos/action_mask", external),
    }


@pytest.mark.parametrize("case", range(11))
def test_nothing_of_another_file_is_read_or_added_to(case, path, tmp_path):
    name, edit = list(links(tmp_path).items())[case]
    edited(path, edit)
    before = path.read_bytes()
    refused(partial(read, path), "external" if "external" in name and "soft" not in name else "")
    refused(partial(DatasetWriter, path, SPEC))
    assert path.read_bytes() == before
    assert not path.with_name("recorded.hdf5.part").exists()


def test_adding_looks_at_what_reading_passes_over(path, tmp_path):
    """`infos` are not read, but would be handed on."""
    edited(path, put("episode_0/infos/other", h5py.ExternalLink("private.hdf5", "/x")))
    assert read(path)["episodes"] == 2
    refused(partial(DatasetWriter, path, SPEC), "external link")


@pytest.mark.parametrize("link", ["main_data.hdf5", "data", "metadata.json"])
def test_links_inside_a_folder_are_not_followed(link, path, tmp_path):
    data = tmp_path / "set" / "data"
    data.mkdir(parents=True)
    file = data / "main_data.hdf5"
    file.write_bytes(path.read_bytes())
    assert read(tmp_path / "set")["episodes"] == 2
    if link == "data":
        data.rename(tmp_path / "elsewhere")
        data.symlink_to(tmp_path / "elsewhere")
    elif link == "main_data.hdf5":
        file.unlink()
        file.symlink_to(path)
    else:
        edited(file, lambda f: f.attrs.__delitem__("observation_space"))
        (tmp_path / "private.json").write_text("{}")
        (data / "metadata.json").symlink_to(tmp_path / "private.json")
    with pytest.raises(ConfigurationError, match=f"{link}.* a link"):
        read_dataset(tmp_path / "set")
    if link != "metadata.json":
        assert read(file)["episodes"] == 2  # who names the file means it


# --- sizes ----------------------------------------------------------------------------------------


def claim(rows, **how):
    return [
        make(f"episode_0/{name}", (rows,), kind, **how)
        for name, kind in (("rewards", "f8"), ("terminations", "?"), ("truncations", "?"))
    ]


def nested(depth):
    def edit(file):
        del file[X]
        file.create_group("/".join([X, *"a" * depth]))

    return edit


def doubled(file):
    """Groups of two links to the next: 2³⁰ paths through 30 groups."""
    del file[X]
    group = file.create_group(X)
    for _ in range(30):
        inner = group.create_group("a")
        group["b"] = inner
        group = inner


SIZES = {
    "rows without end": (claim(10**12, chunks=(1024,)), "claims"),
    "rows without end, compressed": (claim(10**10, chunks=(1024,), compression="gzip"), "claims"),
    "observations that are not there": (
        [make(X, (10**9, 2), "f4", chunks=(1024, 2), compression="gzip")],
        "claims",
    ),
    "long texts": ([make(X, (STEPS + 1,), "S100000000", chunks=(1,))], "claims"),
    "masks without end": (
        [make("episode_1/infos/action_mask", (STEPS + 1, 10**9), "?", chunks=(1, 1024))],
        "claims",
    ),
    "deep groups": ([nested(500)], "groups deep"),
    "a group that holds itself": ([lambda f: put(X, f["episode_0"])(f)], "holds itself"),
    "two groups that hold each other": (
        [lambda f: put(f"{X}/a/b", f["episode_0/observations"])(f)],
        "holds itself",
    ),
    "more paths than groups": ([doubled], "two places"),
}


@pytest.mark.parametrize("case", SIZES)
def test_nothing_larger_than_the_file(case, path):
    edits, word = SIZES[case]
    if case.startswith("two"):
        edited(path, lambda f: f.__delitem__(X))
    edited(path, *edits)
    refused(partial(read, path), word)


def test_what_is_compressed_well_is_read(path):
    """And what was never written, where it is small: zeros are what HDF5 says of both."""
    packed = np.zeros((STEPS + 1, 2), np.float32)
    edited(
        path,
        make(X, data=packed, compression="gzip"),
        make("episode_0/truncations", (STEPS,), "?"),
    )
    assert read(path)["steps"] == 2 * STEPS


def test_a_large_data_set_of_zeros_is_no_forgery(path, monkeypatch):
    monkeypatch.setattr(hdf5_safety, "SMALL_BYTES", 0)
    edited(path, make(X, data=np.zeros((STEPS + 1, 2), np.float32), compression="gzip"))
    assert read(path)["episodes"] == 2
    monkeypatch.setattr(hdf5_safety, "memory", lambda: 10)
    refused(partial(read, path), "more than this machine's memory")
    monkeypatch.undo()
    monkeypatch.setattr(hdf5_safety, "SMALL_BYTES", 16)
    rows = np.random.default_rng(0).random((90, 2), np.float32)
    refused(partial(read, edited(path, make(X, data=rows))), "claims 90 rows", "3 rewards")


# --- what is no episode ---------------------------------------------------------------------------


KINDS = {
    "data set in place of an episode": put("episode_0", np.zeros(3)),
    "data type in place of an episode": put("episode_0", np.dtype("f4")),
    "data type in place of rewards": put("episode_0/rewards", np.dtype("f4")),
    "text rewards": put("episode_0/rewards", list("abc")),
    "complex rewards": put("episode_0/rewards", np.ones(STEPS, complex)),
    "group of rewards": put("episode_0/rewards/a", np.ones(STEPS)),
    "one reward": put("episode_0/rewards", 1.0),
    "text flags": put("episode_0/terminations", list("abc")),
    "flags of 2": put("episode_0/terminations", np.full(STEPS, 2)),
    "nothing at all": put(X, h5py.Empty("f4")),
    "references": make(X, (STEPS + 1,), h5py.ref_dtype),
    "region references": make(X, (STEPS + 1,), h5py.regionref_dtype),
    "records": make(X, (STEPS + 1,), [("a", "f4"), ("b", "f4")]),
    "opaque bytes": make(X, (STEPS + 1,), "V8"),
    "gaps in a tuple": lambda f: [put(f"{X}/_index_{i}", np.zeros(4))(f) for i in (0, 2)],
    "odd digits": lambda f: f.copy("episode_0", "episode_²"),
    "zeros in front": lambda f: f.copy("episode_0", "episode_007"),
    "no digits": lambda f: f.copy("episode_0", "episode_x\n"),
    "name of 5000 digits": lambda f: f.copy("episode_0", f"episode_{'1' * 5000}"),
    "broken text": lambda f: make(X, data=[b"\xff"] * 4, dtype=h5py.string_dtype())(f),
}


@pytest.mark.parametrize("case", KINDS)
def test_what_is_no_episode(case, path):
    edits = [KINDS[case]]
    if case in ("gaps in a tuple", "group of rewards"):
        edits.insert(0, lambda f: f.__delitem__(X if "gaps" in case else "episode_0/rewards"))
    refused(partial(read, edited(path, *edits)))


def described(space="observation_space", **json_of_it):
    return lambda file: file.attrs.__setitem__(space, json.dumps(json_of_it))


BOX = {"type": "Box", "dtype": "float32", "shape": [1], "low": [0.0], "high": [1.0]}
TOWER: dict = BOX
for _ in range(100):
    TOWER = {"type": "Tuple", "subspaces": [TOWER]}
SPACES = {
    "brackets without end": lambda f: f.attrs.__setitem__("observation_space", "[" * 5000),
    "spaces within spaces": described(**TOWER),
    "shape without end": described(**{**BOX, "shape": [10**12]}),
    "nan bounds": described(**{**BOX, "low": [float("nan")]}),
    "objects": described(**{**BOX, "dtype": "O"}),
    "records": described(**{**BOX, "dtype": "f4,f4"}),
    "wide numbers": described(**{**BOX, "dtype": "(100000000,100000000)f4"}),
    "opaque bytes": described(**{**BOX, "dtype": "V8"}),
    "numbers as type": described(**{**BOX, "dtype": 4}),
    "no actions": described("action_space", type="Discrete", n=0, start=0),
    "float actions": described("action_space", type="Discrete", n=2, start=0, dtype="float32"),
    "negative texts": described(type="Text", max_length=-1, min_length=1, charset="a"),
    "bits of nothing": described(type="MultiBinary", n=[-1]),
    "list": lambda f: f.attrs.__setitem__("observation_space", "[1, 2]"),
    "array": lambda f: f.attrs.__setitem__("observation_space", np.zeros(3)),
    "reference": lambda f: f.attrs.__setitem__("observation_space", f["episode_0"].ref),
}


@pytest.mark.parametrize("case", SPACES)
def test_what_is_no_space(case, path):
    refused(partial(read, edited(path, SPACES[case])))


def test_what_the_file_says_of_itself_stays_in_one_line(path):
    charset = {"type": "Text", "max_length": 5, "min_length": 1, "charset": "ab\n" + "c" * 5000}
    entries = {"type": "Dict", "subspaces": {f"\n{i}": charset for i in range(20)}}
    refused(partial(read, edited(path, described(**entries))), "was recorded with")
    edited(path, lambda f: f.attrs.__setitem__("env_id", "a\nb" * 500))
    assert len(read_dataset(path).spec.id) < 120


@pytest.mark.parametrize("said", [5, "two", None])
def test_a_file_that_contradicts_itself_is_not_added_to(said, path):
    def edit(file):
        del file.attrs["total_episodes"]
        if said is not None:
            file.attrs["total_episodes"] = said

    refused(partial(DatasetWriter, edited(path, edit), SPEC), "nothing can be added")


TEXTS = EnvSpec(s.Text(100), s.Discrete(2), "Texts-v0")


def texts(tmp_path, *rows):
    path = tmp_path / "recorded.hdf5"
    count = len(rows) - 1
    ends = np.arange(count) == count - 1
    with DatasetWriter(path, TEXTS) as writer:
        zeros = np.zeros(count)
        writer.add(Episode(list(rows), zeros.astype(int), zeros, ends, ends & False))
    return path


def peak(use):
    tracemalloc.start()
    try:
        return use(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_one_long_text_among_many_costs_no_more_than_itself(tmp_path):
    rows = ["x" * 100_000, *[f"é {i}" for i in range(1000)]]  # padded, they would be 400 MB
    path, written = peak(lambda: texts(tmp_path, *rows))
    (found,), read = peak(lambda: list(read_recorded(path, TEXTS).episodes()))
    assert found.observations == rows
    assert max(written, read) < 20e6


def test_rows_that_claim_the_same_text_are_counted(tmp_path):
    path = texts(tmp_path, "x" * 200_000, *["y"] * 400)
    with h5py.File(path) as file:
        place = file["episode_0/observations"].id.get_offset()
        count = len(file["episode_0/observations"])
    with open(path, "r+b") as file:
        file.seek(place)
        first = file.read(16)  # a length, and where it lies
        file.seek(place)
        file.write(first * count)
    _, read = peak(lambda: refused(lambda: list(read_dataset(path).episodes()), "the whole file"))
    assert read < 20e6


def packed(chunk, number):
    """Rewards in chunks of so many rows, packed by a filter."""

    def edit(file):
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_chunk((chunk,))
        plan.set_filter(number, h5py.h5z.FLAG_OPTIONAL, (9,))
        del file["episode_0/rewards"]
        space = h5py.h5s.create_simple((STEPS,), (h5py.h5s.UNLIMITED,))
        name, kind = b"rewards", h5py.h5t.IEEE_F64LE
        h5py.h5d.create(file["episode_0"].id, name, kind, space, plan)

    return edit


@pytest.mark.parametrize(
    ("edit", "said"),
    [(packed(20_000_000, 1), "lies in chunks of 0.1 GiB"), (packed(1, 32001), "HDF5 filter 32001")],
)
def test_what_hdf5_would_unpack_is_asked_before(edit, said, path):
    refused(lambda: list(read_dataset(edited(path, edit)).episodes()), said)


def test_one_episode_under_many_names_is_not_many(path, monkeypatch):
    def edit(file):
        long = np.zeros(100_000)
        del file["episode_0/rewards"]
        file["episode_0"].create_dataset("rewards", data=long, compression="gzip")
        for index in range(2, 500):
            file[f"episode_{index}"] = file["episode_0"]

    monkeypatch.setattr("rl_lightning.data.dataset.SMALL_BYTES", 2**20)
    refused(lambda: read_dataset(edited(path, edit)).total_steps, "of this size cannot hold")


# --- images ---------------------------------------------------------------------------------------

IMAGE = EnvSpec(s.Box(0, 255, (36, 40, 3), np.uint8), s.Discrete(2), "Image-v0")


def jpeg(shape=(36, 40), kind="JPEG"):
    file = io.BytesIO()
    Image.new("RGB", shape[::-1]).save(file, kind)
    return np.frombuffer(file.getvalue(), np.uint8)


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("case", ["huge", "broken", "another format", "differing", "empty"])
def test_images_that_are_none(case, told, tmp_path, monkeypatch):
    rows = [jpeg()] * (STEPS + 1)
    rows[1 if case != "huge" else 0] = {
        "huge": lambda: jpeg((4000, 4000)),
        "broken": lambda: jpeg()[:200],
        "another format": lambda: jpeg(kind="PNG"),
        "differing": lambda: jpeg((35, 40)),
        "empty": lambda: jpeg()[:0],
    }[case]()
    path = tmp_path / "recorded.hdf5"
    with DatasetWriter(path, IMAGE) as writer:
        zeros = np.zeros((STEPS + 1, 36, 40, 3), np.uint8)
        writer.add(episode(observations=zeros))

    def edit(file):
        del file["episode_0/observations"]
        kind = h5py.vlen_dtype(np.uint8)
        ragged = file.create_dataset("episode_0/observations", (STEPS + 1,), kind)
        for i, row in enumerate(rows):
            ragged[i] = row
        if not told:
            file.attrs.__delitem__("observation_space")

    edited(path, edit)
    monkeypatch.setattr("rl_lightning.data.recordings.minari.memory", lambda: 10**8)
    refused(lambda: list(read_dataset(path).episodes()), "episode_0: observations")


# --- places ---------------------------------------------------------------------------------------


def test_places_that_cannot_be_written_to_are_told(tmp_path):
    (tmp_path / "file").write_text("")
    refused(partial(DatasetWriter, tmp_path / "file" / "recorded.hdf5", SPEC), "data.record")
    refused(partial(DatasetWriter, "/proc/no/recorded.hdf5", SPEC), "data.record")
    for name in ("", "."):
        with pytest.raises(ConfigurationError, match=r"data.record: '.' names no file"):
            DatasetWriter(name, SPEC)
    (tmp_path / "recorded.hdf5").symlink_to(tmp_path / "nowhere")
    refused(partial(DatasetWriter, tmp_path / "recorded.hdf5", SPEC), "there is no file")


def test_a_full_disk_leaves_what_was_there(path):
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    writer = DatasetWriter(path, SPEC)

    def fill():
        for _ in range(1000):
            writer.add(episode())

    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20_000, hard))
        with pytest.raises(RunError, match=r"could not be written to .*\.part: .*make room"):
            fill()
        with suppress(RunError):
            writer.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
