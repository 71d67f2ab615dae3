"""The command line: `rl-lightning fit | validate | test | predict`."""

from rl_lightning.cli.command import RLCLI, main

__all__ = ["RLCLI", "main"]
