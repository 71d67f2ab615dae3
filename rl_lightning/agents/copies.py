"""What of an agent is its own, and what belongs to the run that it is in."""

import copy
import pickle
import weakref
from typing import Any

import lightning as L
import torch

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.nn.compiled import load_plain_names, save_plain_names
from rl_lightning.trainer import NO_RUN

# What `trainer.fit(torch.compile(agent))` replaces in the agent by compiled functions of it.
STEPS = ("forward", "training_step", "validation_step", "test_step", "predict_step")


class CopyableModule(L.LightningModule):
    """A LightningModule that can be copied at any time, and keeps no run alive.

    A copy (`copy.deepcopy`, `pickle`, `torch.save`, another process) acts as the original does and
    has its weights; it belongs to no trainer, and holds neither data module nor environments. It
    can be trained wherever it was made. What `torch.compile(agent)` or `agent.compile()` compiled
    is not compiled in the copy, and an optimizer that only a local function can build is missing
    in what was pickled.

    Its `state_dict` has the same names whatever was compiled, and takes those of any way of
    compiling.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_state_dict_post_hook(save_plain_names)
        self.register_load_state_dict_pre_hook(load_plain_names)

    def run_state(self) -> dict[str, Any]:
        """Attributes that belong to a run, and what they are in a copy, which is in none."""
        return {}

    @property
    def _trainer(self) -> Any:
        """The trainer, held weakly: it holds the data module, and that environments and buffers.

        While it runs somebody else holds it. Of one that is gone, where it stopped is left.
        """
        held = self.__dict__.get("_held_trainer")
        if not isinstance(held, weakref.ref):
            return held
        trainer = held()
        return self.__dict__.get("_gone_trainer") if trainer is None else trainer

    @_trainer.setter
    def _trainer(self, trainer: Any) -> None:
        weakly = isinstance(trainer, L.Trainer)  # and not what stands in for one
        self.__dict__["_held_trainer"] = weakref.ref(trainer) if weakly else trainer
        self.__dict__["_gone_trainer"] = None

    def teardown(self, stage: str) -> None:
        self.__dict__["_gone_trainer"] = GoneTrainer(self.trainer)

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        if state.get("_compiler_ctx") is not None:
            for name in STEPS:
                state.pop(name, None)
        for name in ("_trainer", "_compiled_call_impl"):
            state.pop(name, None)
        run = {"_held_trainer": None, "_gone_trainer": None, **copy.deepcopy(NO_RUN)}
        del run["_trainer"]  # a property here
        return {**state, **run, **self.run_state()}

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced: Any = super().__reduce_ex__(protocol)
        make, args, state, *rest = reduced
        if not _can_be_pickled(state.get("optimizer")):
            state = {**state, "optimizer": Missing("optimizer", state["optimizer"])}
        return (make, args, state, *rest)

    def __copy__(self) -> Any:
        new = type(self).__new__(type(self))
        new.__setstate__(self.__getstate__())
        return new

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.clear()
        super().__setstate__(_trainable(state))

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        with torch.inference_mode(False):
            new.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return new


class GoneTrainer:
    """What an agent keeps of a trainer that nobody holds any more.

    Args:
        trainer: The trainer, at the end of its run.
    """

    logger = None

    def __init__(self, trainer: Any) -> None:
        self.global_step: int = trainer.global_step
        self.current_epoch: int = trainer.current_epoch
        self.callback_metrics: dict[str, Any] = dict(trainer.callback_metrics)
        self.loggers: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise RuntimeError(
            f"the trainer of this agent is gone, and its {name} with it: keep the trainer"
        )


class Missing:
    """What a pickled agent has instead of a function that cannot be pickled.

    Args:
        name: Attribute that held it.
        function: A local function, or what contains one.
    """

    def __init__(self, name: str, function: Any) -> None:
        self.name, self.kind = name, type(function).__name__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise ConfigurationError(
            f"{self.name} was a {self.kind} that pickle cannot hold: this copy acts, but to train "
            f"it, set its {self.name} again; copy.deepcopy keeps it"
        )


def _can_be_pickled(thing: Any) -> bool:
    try:
        pickle.dumps(thing)
    except Exception:  # pickle raises whatever it meets
        return False
    return True


def _trainable(state: dict[str, Any]) -> dict[str, Any]:
    """Callbacks of a validation run in inference mode, and tensors that are made there cannot be
    trained: make them anew."""
    if not torch.is_inference_mode_enabled():
        return state
    with torch.inference_mode(False):
        return copy.deepcopy(state)
