"""Callbacks: progress bar, run folder, graceful stop, text panel, videos."""

from rl_lightning.callbacks.progress import FrameProgressBar
from rl_lightning.callbacks.run_folder import RunFolder
from rl_lightning.callbacks.stop import GracefulStop
from rl_lightning.callbacks.text import TextPanel
from rl_lightning.callbacks.video import VideoRecorder

__all__ = ["FrameProgressBar", "GracefulStop", "RunFolder", "TextPanel", "VideoRecorder"]
