"""Where on disk stands what was computed once and can be computed again."""

import os
from pathlib import Path

VARIABLE = "RL_LIGHTNING_CACHE"


def cache_folder(part: str) -> Path:
    """The folder of one kind of such things; it need not exist.

    It is below the one that the environment variable `RL_LIGHTNING_CACHE` names, or else below
    `rl_lightning` in the user's cache folder: `$XDG_CACHE_HOME`, or `~/.cache`. What is in it may
    be deleted whenever no program runs.

    Args:
        part: Its name, as "models".
    """
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named).expanduser().absolute() / part
    home = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The specification has relative paths ignored.
    root = home if home.is_absolute() else Path("~/.cache").expanduser()
    return root / "rl_lightning" / part
