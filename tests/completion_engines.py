"""Who writes and judges completions, in tests: what is interrupted or wrong."""

import os
import signal
from collections.abc import Sequence
from pathlib import Path

from rl_lightning.llm.backbone import Backbone
from rl_lightning.llm.generators import Generated, TransformersGenerator
from rl_lightning.llm.sampling import Sampling


class Interrupted(TransformersGenerator):
    """Gets SIGTERM while it writes, once as many calls are over as a file says, if it is there."""

    def __init__(self, calls_left: str) -> None:
        super().__init__()
        self.file = Path(calls_left)

    def __call__(
        self,
        backbone: Backbone,
        prompts: Sequence[Sequence[int]],
        samples: int,
        sampling: Sampling,
        version: int = 0,
    ) -> Generated:
        if self.file.exists():
            left = int(self.file.read_text())
            if left:
                self.file.write_text(str(left - 1))
            else:
                self.file.unlink()
                os.kill(os.getpid(), signal.SIGTERM)
        return super().__call__(backbone, prompts, samples, sampling, version)


class NoGenerator:
    """Takes something else."""

    def __call__(self, prompts: list[str]) -> list[str]:
        return prompts


def one_number(prompts: list[str], completions: list[str]) -> list[float]:
    """A reward that forgets all but one."""
    return [1.0]
