"""Lightning's searches for a learning rate and a batch size, which try things out in `fit`."""

from typing import Any

from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.trainer import updated_attribute


def check_tuners(trainer: Any, minibatch: str | None) -> None:
    """Refuse a search whose answer would mean nothing.

    Args:
        trainer: The trainer, with its agent.
        minibatch: The argument that a search for a batch size cannot try out; None: it can.

    Raises:
        ConfigurationError: That names the search and what to set instead.
    """
    agent = trainer.lightning_module
    for callback in trainer.callbacks:
        if isinstance(callback, BatchSizeFinder) and minibatch is not None:
            raise ConfigurationError(
                f"BatchSizeFinder cannot try out {minibatch}, which is no batch_size: it divides "
                "the rollout, and is a choice of the algorithm; set it yourself"
            )
        if isinstance(callback, LearningRateFinder):
            if "rollouts" not in agent.learns_from or not agent.learns_by_gradient:
                raise ConfigurationError(
                    f"lr_find (LearningRateFinder) cannot search for {type(agent).__name__}, which "
                    "makes many updates in one step of the trainer; set the lr of its optimizer"
                )
            if agent.lr_schedule != "constant":
                raise ConfigurationError(
                    "lr_find (LearningRateFinder) needs model.lr_schedule: constant, not "
                    f"{agent.lr_schedule}, which sets the rate itself"
                )
            updates, name = updated_attribute(callback)
            names = {"lr", "learning_rate", name}
            if updates and not names & {*agent.hparams, *vars(agent)}:
                raise ConfigurationError(
                    f"lr_find (LearningRateFinder) finds no lr of {type(agent).__name__} to update;"
                    " give update_attr=False, and set what it finds as the lr of the optimizer"
                )


def check_restart(trainer: Any) -> None:
    """Refuse a search in a run that goes on from replay contents: its trials would lose them.

    Raises:
        ConfigurationError: That names the search.
    """
    for callback in trainer.callbacks:
        if isinstance(callback, BatchSizeFinder) and trainer.state.fn == "fit":
            raise ConfigurationError(
                "BatchSizeFinder would lose the replay contents that this run goes on from; search "
                "in a run of its own, and set data.batch_size"
            )
