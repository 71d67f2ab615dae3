"""Policies as files that run without this library: ONNX, or a program of `torch.export`."""

from rl_lightning.export.folder import export_policy
from rl_lightning.export.graph import FORMATS, Format
from rl_lightning.export.parity import Parity

__all__ = ["FORMATS", "Format", "Parity", "export_policy"]
