"""What `rl-lightning` and `python -m rl_lightning` run.

It imports the command line within `main`: processes of environments import this module too.
"""

import signal

from rl_lightning.core.stopping import SIGNALS, ended_by_signals


def main(args: list[str] | None = None) -> None:
    """Run the command line, which signals can end from its first import on."""
    try:
        with ended_by_signals():
            from rl_lightning.cli.command import main as run

            run(args)
    finally:
        for number in SIGNALS:  # while the interpreter shuts down, end without a traceback
            signal.signal(number, signal.SIG_DFL)


if __name__ == "__main__":
    main()
