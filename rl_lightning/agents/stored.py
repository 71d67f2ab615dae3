"""What an agent was built with: remembered without further ado, and built from again."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L

from rl_lightning.agents.load import build_agent
from rl_lightning.agents.owned import with_moved_models
from rl_lightning.core.arguments import check_names
from rl_lightning.core.checkpoints import read_checkpoint
from rl_lightning.core.errors import ConfigurationError
from rl_lightning.core.names import present_paths
from rl_lightning.core.signatures import Signature
from rl_lightning.hyperparameters import describe_call, without_code_switch
from rl_lightning.trainer import (
    built_by_command_line,
    restricted_classmethod,
    set_hyperparameters,
)


class StoredModule(L.LightningModule):
    """A module whose constructor's arguments are its hyper-parameters, so that a checkpoint alone
    rebuilds it."""

    __signature__ = Signature()

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        check_names(cls, kwargs)
        agent = super().__new__(cls)
        object.__setattr__(agent, "_call", (args, kwargs))
        return agent

    @restricted_classmethod
    def load_from_checkpoint(
        cls,  # noqa: N805
        checkpoint_path: str | Path,
        map_location: Any = "cpu",
        strict: bool | None = None,
        trusted: Sequence[str] = (),
        weights_only: bool = True,
        **kwargs: Any,
    ) -> Any:
        """The agent of a checkpoint; `Agent.load_from_checkpoint(path)` finds its class by itself.

        No code of the file's runs, and none that it names is imported by surprise, see
        `rl_lightning.core.trust`.

        Args:
            checkpoint_path: A local file.
            map_location: Device of its tensors, and of the agent.
            strict: Whether every weight must be in the file, and no other; None: as the class has
                it.
            trusted: Packages outside this library whose classes the checkpoint may name.
            weights_only: As Lightning has it; nothing but plain data and weights is ever loaded.
            **kwargs: Arguments in the place of those that the agent was trained with.

        Returns:
            An agent of this class.

        Raises:
            ConfigurationError: If the file is damaged or no checkpoint, if it holds another kind of
                agent, or if it names what may not be imported.
        """
        if not weights_only:
            raise ConfigurationError(
                "weights_only=False would run what the file asks for; leave it out: an agent's "
                "checkpoint is plain data"
            )
        read = read_checkpoint(checkpoint_path, map_location)
        checkpoint = with_moved_models(read, checkpoint_path)
        return build_agent(cls, checkpoint, strict, trusted, kwargs)

    def _remember_arguments(self) -> None:
        call: Any = self._call
        args, kwargs = call
        del self._call
        if built_by_command_line():
            self.save_hyperparameters(logger=False)
            hparams = dict(self.hparams)
            self.hparams.clear()
        else:
            hparams = describe_call(type(self), args, kwargs)
        set_hyperparameters(self, present_paths(without_code_switch(hparams)))


def count_of(checkpoint: Mapping[str, Any], name: str, default: int = 0) -> int:
    """What a checkpoint counts.

    Raises:
        ConfigurationError: If it is no count.
    """
    count = checkpoint.get(name, default)
    if type(count) is not int or not 0 <= count < 2**53:
        raise ConfigurationError(f"the checkpoint counts {count!r} {name}: it was changed")
    return count
