"""A data module's arguments: remembered, stored, and taken from a checkpoint again."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L

from rl_lightning.core.arguments import check_names
from rl_lightning.core.checkpoints import read_checkpoint
from rl_lightning.core.signatures import Signature
from rl_lightning.data.resume.arguments import built_arguments, stored_arguments
from rl_lightning.hyperparameters import describe_call
from rl_lightning.trainer import restricted_classmethod, set_hyperparameters


class StoredDataModule(L.LightningDataModule):
    """A data module whose constructor's arguments are its hyper-parameters."""

    __signature__ = Signature()
    _call: Any

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        check_names(cls, kwargs)
        module = super().__new__(cls)
        module._call = args, kwargs  # whatever a subclass hands on, these it was built with
        return module

    def remember_arguments(self) -> None:
        """Have all checkpoints say what this was built with."""
        args, kwargs = self._call
        set_hyperparameters(self, describe_call(type(self), args, kwargs, prefix="data."))
        del self._call

    @restricted_classmethod
    def load_from_checkpoint(
        cls,  # noqa: N805
        checkpoint_path: str | Path,
        trusted: Sequence[str] = (),
        **kwargs: Any,
    ) -> Any:
        """The data module that a checkpoint's agent was trained on, as it was before training.

        `trainer.fit(agent, data, ckpt_path=path)` goes on where it stood. No code of the file's
        runs, and none that it names is imported by surprise, see `rl_lightning.core.trust`. Where
        to record and to keep a buffer on disk is not taken from the file.

        Args:
            checkpoint_path: A local file.
            trusted: Packages outside this library that the checkpoint may name: modules of
                environments, wrappers, describers.
            **kwargs: Arguments in the place of those in the checkpoint.

        Raises:
            ConfigurationError: If the file is damaged or no checkpoint, does not hold such a data
                module, or names what may not be imported.
        """
        hyper = read_checkpoint(checkpoint_path).get(cls.CHECKPOINT_HYPER_PARAMS_KEY)
        made, given = stored_arguments(hyper, cls, str(checkpoint_path), trusted, kwargs)
        return made(**built_arguments(made, given, trusted))
