"""Callbacks: progress, run folder, graceful stop, texts, videos, small gradients."""

from rl_lightning.callbacks.compressed import CompressGradients
from rl_lightning.callbacks.progress import FrameProgressBar
from rl_lightning.callbacks.run_folder import RunFolder
from rl_lightning.callbacks.stop import GracefulStop
from rl_lightning.callbacks.text import TextPanel
from rl_lightning.callbacks.video import VideoRecorder

__all__ = [
    "CompressGradients",
    "FrameProgressBar",
    "GracefulStop",
    "RunFolder",
    "TextPanel",
    "VideoRecorder",
]
