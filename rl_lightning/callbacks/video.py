"""Videos of evaluation episodes."""

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.data.collect.stepper import Stepper
from rl_lightning.envs.failures import failed


class VideoRecorder(L.Callback):
    """After a validation, plays one greedy episode and writes it to `<log dir>/videos/*.mp4`.

    Args:
        every_n_validations: Record after every n-th validation.
        max_steps: Longest recording, in steps.
        fps: Frames per second of the video; None: the environment's `render_fps`.

    Raises:
        ConfigurationError: If the environment cannot render images or moviepy is missing.
    """

    def __init__(
        self, every_n_validations: int = 1, max_steps: int = 500, fps: int | None = None
    ) -> None:
        if every_n_validations < 1 or max_steps < 1:
            raise ConfigurationError(
                "VideoRecorder: every_n_validations and max_steps must be at least 1, not "
                f"{every_n_validations} and {max_steps}"
            )
        self.every_n_validations = every_n_validations
        self.max_steps = max_steps
        self.fps = fps
        self._validations = 0
        self._env: Any = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        try:
            import moviepy  # noqa: F401
        except ImportError as error:
            raise ConfigurationError(
                "VideoRecorder needs moviepy: pip install 'rl-lightning[video]'"
            ) from error

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._validations += 1
        log_dir = trainer.log_dir  # asked on every rank: it is broadcast
        if trainer.global_rank or (self._validations - 1) % self.every_n_validations:
            return
        folder = Path(log_dir or trainer.default_root_dir) / "videos"
        folder.mkdir(parents=True, exist_ok=True)
        write_video(
            self._play(trainer.datamodule),  # type: ignore[attr-defined]
            folder / f"frames-{pl_module.frames}.mp4",
            self.fps or self._render_fps(),
        )

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self._env is not None:
            self._env.close()
            self._env = None

    def _play(self, data: Any) -> list[np.ndarray]:
        if self._env is None:
            self._env = data.make_eval_env(1, render_mode="rgb_array")
        stepper = Stepper(self._env, data.val_seed, observed=False, during="this video")
        with data.acting() as agent:
            stepper.check.ignore(agent.unread)
            stepper.restart(agent)
            frames = [self._render()]
            for _ in range(self.max_steps):
                stepper.look(agent)
                out = agent.act(stepper.x, False, stepper.state, stepper.mask)
                took = stepper.advance(out["action"])
                stepper.carry(out.get("next_state"), took)
                if took.finished:
                    break  # the environment shows the next episode already
                frames.append(self._render())
        return frames

    def _render(self) -> np.ndarray:
        try:
            images = self._env.render()
        except (Exception, SystemExit) as error:
            raise failed(self._env, error, "render") from error
        if images is None or images[0] is None:
            raise ConfigurationError(
                "VideoRecorder: the environment does not render rgb_array images; leave the "
                "callback out"
            )
        return np.asarray(images[0])

    def _render_fps(self) -> int:
        return int(self._env.metadata.get("render_fps") or 30)


def write_video(frames: list[np.ndarray], path: Path, fps: int) -> None:
    """Encode images `[H, W, 3]` uint8 as an mp4."""
    from moviepy import ImageSequenceClip

    ImageSequenceClip(frames, fps=fps).write_videofile(str(path), logger=None)
