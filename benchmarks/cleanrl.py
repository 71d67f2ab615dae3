"""CleanRL's published scripts as they are, in this process, for the other benchmarks.

    git clone https://github.com/vwxyzjn/cleanrl ../cleanrl    # and `pip install tyro`
    python benchmarks/onpolicy.py --against cleanrl --cleanrl ../cleanrl

A script trains where it stands, on being run, so it is run, after all that it imports has been
imported. It was written for Gymnasium 0.29: names that later versions have changed are given back
to it, and vector environments restart finished episodes in the same step, as they did then.
"""

import os
import runpy
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import timed


def options_of(arguments: dict[str, Any]) -> list[str]:
    """`{"num_envs": 8, "anneal_lr": False}` → `["--num-envs", "8", "--no-anneal-lr"]`."""
    found: list[str] = []
    for name, value in arguments.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            found.append(f"--{option}" if value else f"--no-{option}")
        else:
            found += [f"--{option}", str(value)]
    return found


def give_back_names() -> None:
    """Gymnasium as it was."""
    import gymnasium as gym
    from gymnasium.vector import AutoresetMode
    from gymnasium.vector import SyncVectorEnv as Now

    class SyncVectorEnv(Now):
        def __init__(self, env_fns: Any) -> None:
            super().__init__(env_fns, autoreset_mode=AutoresetMode.SAME_STEP)

        def step(self, actions: Any) -> Any:
            *rest, infos = super().step(actions)
            if "final_obs" in infos:
                infos["final_observation"] = infos.pop("final_obs")
                infos.pop("final_info")  # its scripts only print what is in it
            return *rest, infos

    wrappers: Any = gym.wrappers
    transform = wrappers.TransformObservation
    wrappers.TransformObservation = lambda env, f: transform(env, f, env.observation_space)
    wrappers.GrayScaleObservation = wrappers.GrayscaleObservation
    wrappers.FrameStack = wrappers.FrameStackObservation
    gym.vector.SyncVectorEnv = SyncVectorEnv  # type: ignore[misc]


def train(folder: Path, script: str, **arguments: Any) -> tuple[dict[str, float], dict[str, Any]]:
    """Run `cleanrl/SCRIPT.py` of a checkout; what it took, and its global names."""
    # The script's own, imported before any clock runs.
    import torch.utils.tensorboard  # noqa: F401
    import tyro  # noqa: F401

    give_back_names()
    folder = folder.resolve()
    sys.path.insert(0, str(folder))
    path = folder / "cleanrl" / f"{script}.py"
    sys.argv = [str(path), *options_of({"cuda": False, **arguments})]
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as own, open(os.devnull, "w") as nowhere:
        os.chdir(own)  # it writes its curves where it is run
        printed, sys.stdout = sys.stdout, nowhere
        try:
            return timed(lambda: runpy.run_path(str(path), run_name="__main__"))
        finally:
            sys.stdout = printed
            os.chdir(here)
