"""What configurations learn from, made before their seeds are run: models and recordings."""

import os
import subprocess
import sys
from pathlib import Path

from tqdm import tqdm

# What must be run before the seeds, by the results' names, one after another: the file that it
# makes, and the commands, as they stand in the configuration's comments: of `rl-lightning`, or of
# Python where they begin with a script. They are left out where the file is.
_PENDULUM = (
    "datasets/pendulum.hdf5",
    (
        "fit --config configs/ppo/pendulum.yaml --data.total_frames 32768 "
        "--checkpoint.dirpath checkpoints/ppo-pendulum-early",
        "predict --config configs/ppo/pendulum.yaml "
        "--checkpoint.dirpath checkpoints/ppo-pendulum-early --ckpt_path last "
        "--data.val_explore true --data.val_episodes 200 --data.record datasets/pendulum.hdf5",
    ),
)
_TEXTMAZE = (
    "checkpoints/models/textmaze/config.json",
    (
        "examples/small_language_model.py configs/ppo/textmaze-scoring-full.yaml "
        "--out checkpoints/models/textmaze --hidden 64 --steps 600 --lr 2e-3",
    ),
)
_WRITER = (
    "checkpoints/models/textmaze-writer/config.json",
    (
        "examples/small_language_model.py configs/ppo/textmaze-generating.yaml "
        "--out checkpoints/models/textmaze-writer --hidden 64 --steps 600 --lr 2e-3 --window 2",
    ),
)
_TEXTWORLD = (
    "checkpoints/models/textworld/config.json",
    (
        "examples/small_language_model.py configs/ppo/textworld-scoring.yaml "
        "--out checkpoints/models/textworld --hidden 64 --steps 1000 --lr 2e-3 "
        "--vocabulary 1500 --frames 10000",
    ),
)
_GOTOLOCAL = (
    "checkpoints/models/gotolocal/config.json",
    (
        "examples/small_language_model.py configs/ppo/gotolocal-scoring-lora.yaml "
        "--out checkpoints/models/gotolocal --hidden 64 --lr 3e-3 --frames 8000 --prompts-only "
        "--retold --steps 5000",
    ),
)
_TURNS = (
    "checkpoints/models/textmaze-turns/config.json",
    (
        "examples/small_language_model.py configs/grpo/textmaze-turns.yaml "
        "--out checkpoints/models/textmaze-turns --hidden 64 --steps 600 --lr 2e-3 --window 8",
    ),
)
_CHARACTERS = (
    "checkpoints/models/characters/config.json",
    ("examples/character_model.py --out checkpoints/models/characters --hidden 128",),
)
_BLANK = (
    "checkpoints/models/blank/config.json",
    ("examples/character_model.py --out checkpoints/models/blank",),
)
_STRINGS = (
    "checkpoints/models/strings/config.json",
    (
        "fit --config configs/sft/strings.yaml",
        "export --ckpt_path checkpoints/sft-strings/last.ckpt --out checkpoints/models/strings",
    ),
)
_ADDITION = (
    "checkpoints/models/addition/config.json",
    (
        "fit --config configs/sft/strings.yaml --data.prompts.task add --data.prompts.length 2 "
        "--data.prompts.shortest null --data.prompts.size 1600 --data.val_prompts.task add "
        "--data.val_prompts.length 2 --data.val_prompts.shortest null --data.total_updates 1200 "
        "--data.updates_per_epoch 120 --checkpoint.dirpath checkpoints/sft-addition",
        "export --ckpt_path checkpoints/sft-addition/last.ckpt --out checkpoints/models/addition",
    ),
)
_PAIRS = (
    "datasets/strings.jsonl",
    (
        "predict --config configs/grpo/strings.yaml --data.val_prompts.init_args.seed 2 "
        "--data.val_prompts.init_args.size 3000 --data.val_prompts.init_args.part train "
        "--data.val_samples 8 "
        "--data.record datasets/strings.jsonl",
    ),
)
PREPARE = {
    "bc-cartpole": (
        (
            "datasets/cartpole.hdf5",
            (
                "fit --config configs/ppo/cartpole.yaml",
                "predict --config configs/ppo/cartpole.yaml --ckpt_path last "
                "--data.val_episodes 20 --data.record datasets/cartpole.hdf5",
            ),
        ),
    ),
    "bc-pendulum": (_PENDULUM,),
    "distill-cartpole": (
        ("checkpoints/ppo-cartpole/best.ckpt", ("fit --config configs/ppo/cartpole.yaml",)),
    ),
    "distill-lunarlander": (
        ("checkpoints/dqn-lunarlander/last.ckpt", ("fit --config configs/dqn/lunarlander.yaml",)),
    ),
    "distill-textmaze": (
        ("checkpoints/ppo-textmaze/best.ckpt", ("fit --config configs/ppo/textmaze.yaml",)),
    ),
    "dpo-strings": (_CHARACTERS, _STRINGS, _PAIRS),
    "grpo-addition": (_CHARACTERS, _ADDITION),
    "grpo-copy-from-scratch": (_BLANK,),
    "grpo-strings": (_CHARACTERS, _STRINGS),
    "grpo-strings-dr": (_CHARACTERS, _STRINGS),
    "grpo-textmaze-turns": (_TURNS,),
    "iql-pendulum": (_PENDULUM,),
    "ppo-gotolocal-scoring-lora": (_GOTOLOCAL,),
    "ppo-textmaze-generating": (_WRITER,),
    "ppo-textmaze-scoring-frozen": (_TEXTMAZE,),
    "ppo-textmaze-scoring-full": (_TEXTMAZE,),
    "ppo-textmaze-scoring-lora": (_TEXTMAZE,),
    "ppo-textworld-scoring": (_TEXTWORLD,),
    "reinforce_plus_plus-strings": (_CHARACTERS, _STRINGS),
    "rloo-strings": (_CHARACTERS, _STRINGS),
    "sft-strings": (_CHARACTERS,),
    "token_ppo-strings": (_CHARACTERS, _STRINGS),
}


class RunError(Exception):
    """A training or evaluation process ended with an error."""


def prepare(name: str) -> None:
    """Make the data that a configuration learns from, unless they are there."""
    for file, commands in PREPARE.get(name, ()):
        if not Path(file).is_file():
            for command in tqdm(commands, desc=f"{name}: making {file}", unit="command"):
                cli(*command.split())


def cli(*arguments: str) -> str:
    """Run `rl-lightning`, or a script, on one thread; returns what it printed."""
    program = [] if arguments[0].endswith(".py") else ["-m", "rl_lightning"]
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    done = subprocess.run(
        [sys.executable, *program, *arguments],
        env={**os.environ, **one_thread},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise RunError(f"{arguments[0]} ended with {done.returncode}: {' | '.join(lines[-3:])}")
    return done.stdout
