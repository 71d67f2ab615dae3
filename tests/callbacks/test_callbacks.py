"""Progress bar, videos and text panel do what a user sees of them."""

import sys
import warnings
from functools import partial

import pytest
from training import make_trainer

from rl_lightning import PPO
from rl_lightning.callbacks import FrameProgressBar, VideoRecorder
from rl_lightning.callbacks.text import transcript_table
from rl_lightning.core.errors import ConfigurationError
from rl_lightning.data import RolloutDataModule


def train(env, tmp_path, callback, **trainer_kwargs):
    data = RolloutDataModule(
        env, num_envs=2, rollout_steps=32, total_frames=192, val_episodes=2, val_seed=5
    )
    trainer = make_trainer(
        callbacks=[callback],
        limit_val_batches=1.0,
        default_root_dir=tmp_path,
        **trainer_kwargs,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(PPO(data.spec), data)
    return trainer


def test_the_bar_counts_frames_and_shows_the_return(tmp_path, capsys):
    train("Counter-v0", tmp_path, FrameProgressBar(), enable_progress_bar=True)
    shown = capsys.readouterr().err
    assert "192/192" in shown
    assert "frame/s" in shown
    assert "return=6" in shown  # 1 + 2 + 3
    assert "val=6" in shown
    assert "validation" in shown


def test_the_bar_can_be_switched_off(tmp_path, capsys):
    bar = FrameProgressBar()
    bar.disable()
    train("Counter-v0", tmp_path, bar, enable_progress_bar=True)
    assert "frame" not in capsys.readouterr().err


def test_every_rank_asks_for_the_log_dir_of_a_video():
    """Asking for it is a broadcast: a rank that left before would let the others wait for ever."""
    asked = []

    class Rank1:
        global_rank = 1

        @property
        def log_dir(self):
            asked.append(True)

    VideoRecorder().on_validation_end(Rank1(), None)  # type: ignore[arg-type]
    assert asked


def test_videos_are_written(tmp_path):
    pytest.importorskip("moviepy")
    pytest.importorskip("pygame")
    train("CartPole-v1", tmp_path, VideoRecorder(every_n_validations=2, max_steps=20))
    videos = sorted(path.name for path in (tmp_path / "videos").iterdir())
    assert videos == ["frames-192.mp4", "frames-64.mp4"]  # the first and third of three
    from imageio.v3 import improps

    shape = improps(tmp_path / "videos" / "frames-64.mp4", plugin="FFMPEG").shape
    assert shape[1:] == (400, 600, 3)


def test_an_environment_without_pictures_is_explained(tmp_path):
    pytest.importorskip("moviepy")
    with pytest.raises(ConfigurationError, match="render"):
        train("Counter-v0", tmp_path, VideoRecorder())


def test_missing_moviepy_is_explained(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "moviepy", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'rl-lightning\[video\]'"):
        train("CartPole-v1", tmp_path, VideoRecorder())


@pytest.mark.parametrize("kwargs", [{"every_n_validations": 0}, {"max_steps": 0}])
def test_numbers_must_be_positive(kwargs):
    with pytest.raises(ConfigurationError, match="at least 1"):
        partial(VideoRecorder, **kwargs)()


def test_transcripts_become_tables():
    transcript = [
        {"observation": "a | b", "probabilities": [0.25, 0.75], "action": 1, "reward": -1.0},
        {"observation": "two\nlines", "probabilities": [1.0, 0.0], "action": 0, "reward": 0.5},
    ]
    assert transcript_table(transcript).splitlines() == [
        "| step | observation | probabilities | action | reward |",
        "| --- | --- | --- | --- | --- |",
        "| 0 | a \\| b | 0.25 0.75 | 1 | -1 |",
        "| 1 | two lines | 1 0 | 0 | 0.5 |",
    ]
