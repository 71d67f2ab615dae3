"""The command line as a user types it."""

import pytest

from rl_lightning.cli import main


@pytest.fixture
def typed(monkeypatch, capfd):
    """Runs `rl-lightning` with some words, in this process, and returns all that it said."""

    def call(*words, status=None):
        monkeypatch.setattr("sys.argv", ["rl-lightning", *words])
        if status is None:
            main(list(words))
        else:
            with pytest.raises(SystemExit) as ended:
                main(list(words))
            assert ended.value.code == status
        out, err = capfd.readouterr()
        assert "Traceback" not in out + err
        return out + err

    return call
