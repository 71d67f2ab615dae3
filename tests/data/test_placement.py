"""Where a run writes: a folder that can be written to, or one sentence before training."""

import os
import tempfile

import pytest

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.data import OfflineDataModule, ReplayDataModule
from rl_lightning.data.replay.storage import storage_folder


@pytest.mark.parametrize("make", [ReplayDataModule, OfflineDataModule])
def test_a_file_is_no_folder(make, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    given = {"dataset": "x.hdf5", "env": "CartPole-v1", "storage": "disk"}
    with pytest.raises(ConfigurationError, match=r"data.storage_dir: .*file is a file; give a fol"):
        make(**given, storage_dir=str(file))
    make(**given, storage_dir=str(tmp_path / "new"))
    assert os.listdir(tmp_path) == ["file"]  # nothing is made before a run


@pytest.mark.parametrize("below", ["file/deep", "link"])
def test_a_folder_that_cannot_be_made(below, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere" / "link")
    with pytest.raises(ConfigurationError, match=r"data.storage_dir: no file can be made in"):
        storage_folder("disk", str(tmp_path / below))


def test_a_folder_that_cannot_be_written_to(tmp_path, monkeypatch):
    def refuse(**kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(ConfigurationError, match=r"no file can be made in .*: Permission denied"):
        storage_folder("disk", str(tmp_path))


def test_a_folder_that_can(tmp_path):
    assert storage_folder("disk", str(tmp_path / "a" / "b")) == tmp_path / "a" / "b"
    assert list((tmp_path / "a" / "b").iterdir()) == []
    assert storage_folder("memory", None) is None
