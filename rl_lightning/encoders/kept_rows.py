"""What frozen language models made of texts, on disk, for other runs."""

import base64
import hashlib
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from rl_lightning.core.answer_file import AnswerFile
from rl_lightning.core.cache_folder import VARIABLE, cache_folder
from rl_lightning.core.errors import RunError


class KeptRows:
    """Text → row, float32 `[D]`, in a file below the cache folder that only ever grows.

    Runs that share it, one after the other or side by side, compute each row once. The whole file
    is in memory while a run has it.

    Args:
        fingerprint: All that decides what a row is: another one has another file.
        width: D.
    """

    def __init__(self, fingerprint: str, width: int) -> None:
        name = hashlib.sha256(fingerprint.encode()).hexdigest()[:32]
        self.width = width
        self.file = AnswerFile(cache_folder("texts") / f"{name}.jsonl")

    def get(self, texts: list[str], compute: Callable[[list[str]], Tensor]) -> Tensor:
        """Rows `[M, D]` of different texts; `compute` is asked for those that nobody has kept.

        Raises:
            RunError: If the file cannot be read or written.
        """
        keys = [hashlib.sha256(t.encode("utf-8", "surrogatepass")).hexdigest() for t in texts]
        try:
            self.file.refresh()
            new = [i for i, key in enumerate(keys) if key not in self.file.known]
            if new:
                rows = compute([texts[i] for i in new]).float().cpu()
                for i, row in zip(new, rows.numpy(), strict=True):
                    said = base64.b64encode(row.astype("<f4").tobytes()).decode()
                    self.file.keep(keys[i], texts[i], said)
            return torch.stack([self._row(self.file.known[key]) for key in keys])
        except OSError as error:
            raise RunError(
                f"keep_on_disk: {self.file.path} cannot be used ({error}): set {VARIABLE} to a "
                "folder that can be written, or keep_on_disk: false"
            ) from error

    def _row(self, said: str) -> Tensor:
        try:
            row = np.frombuffer(base64.b64decode(said, validate=True), "<f4")
        except (ValueError, TypeError):
            row = np.empty(0, "<f4")
        if row.shape != (self.width,) or not np.isfinite(row).all():
            raise RunError(f"keep_on_disk: {self.file.path} is damaged: delete it")
        return torch.from_numpy(row.astype(np.float32))
