"""Whether what an agent has learned still consists of numbers."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import lightning as L
from torch import Tensor, nn

from rl_lightning.core.errors import ConfigurationError, RunError
from rl_lightning.core.types import EnvSpec
from rl_lightning.nn.compiled import plain_name
from rl_lightning.nn.insides import norms
from rl_lightning.nn.norm import RunningMoments


def not_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """The name of a tensor that holds NaN or infinity; None if all numbers are finite.

    A norm of all of them says no, nearly always; only then each is looked at.
    """
    named = [(name, t.detach()) for name, t in tensors if t.is_floating_point() and t.numel()]
    alike: dict[Any, list[Tensor]] = {}
    for _, tensor in named:
        alike.setdefault((tensor.device, tensor.dtype), []).append(tensor)
    sizes = [norms(group).sum() for group in alike.values()]
    if all(bool(norm.isfinite()) for norm in sizes):
        return None
    # A norm of large numbers may overflow where no number does.
    return next((name for name, t in named if not bool(t.isfinite().all())), None)


def learned(agent: nn.Module, optimizers: Iterable[Any]) -> Iterator[tuple[str, Tensor]]:
    """What training changes: parameters that are trained or saved (targets), running statistics,
    the optimizers' state."""
    names, saved = {}, agent.state_dict().keys()
    for name, parameter in agent.named_parameters():
        if parameter.requires_grad or plain_name(name) in saved:
            names[parameter] = name
            yield name, parameter
    for name, module in agent.named_modules():
        if isinstance(module, RunningMoments):
            yield f"{name}.moments", module.moments
    for optimizer in optimizers:
        for parameter, state in optimizer.state.items():
            for key, value in state.items() if isinstance(state, Mapping) else ():
                if isinstance(value, Tensor) and key != "step":
                    yield f"the optimizer's {key} of {names.get(parameter, 'a parameter')}", value


class FiniteModule(L.LightningModule):
    """A module whose loss, weights, statistics and optimizers are looked at now and then.

    The loss once a rollout or run of updates, all else before evaluation, before anything is saved,
    and at the end: so no checkpoint ever holds NaN, and looking costs nothing measurable.
    """

    spec: EnvSpec
    frames: int
    _measure: Callable[[], Mapping[str, float]]
    _last_loss: Tensor | None = None
    remedies = (
        "Rewards or observations may be too large (data.normalize_reward, ClipReward, the "
        "encoder's normalize), the learning rate too high, or gradients unclipped "
        "(trainer.gradient_clip_val)"
    )
    """What may help where numbers are lost."""

    def check_loss(self) -> None:
        """Stop if the last loss was NaN or infinite.

        Raises:
            RunError: That names the agent, the environment and the frames.
        """
        loss = self._last_loss
        if loss is not None and not math.isfinite(value := loss.item()):
            raise self._refusal(f"the loss is {value:g}")

    def check_numbers(self) -> None:
        """Stop if the loss or anything that training changes is NaN or infinite.

        Raises:
            RunError: That names the agent, the environment, the frames and what it is.
        """
        self.check_loss()
        if name := not_finite(self.learned()):
            raise self._refusal(f"{name} is not finite")

    def learned(self) -> Iterable[tuple[str, Tensor]]:
        """What training changes, by name."""
        trainer = self._trainer  # None where an agent is saved by hand
        return learned(self, trainer.optimizers if trainer else ())

    def explain(self, error: Exception) -> None:
        """Whatever went wrong: if numbers are lost, that is the reason.

        Raises:
            RunError: See `check_numbers`; not if the error explains itself.
        """
        if not isinstance(error, ConfigurationError | RunError):
            self.check_numbers()

    def note_loss(self, loss: Tensor) -> None:
        """Remember a loss for `check_loss`."""
        self.__dict__["_last_loss"] = loss.detach()  # `nn.Module` would look for parameters

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        self.note_loss(loss)
        super().backward(loss, *args, **kwargs)

    def on_train_end(self) -> None:
        self.check_numbers()

    # A policy of NaN would play anything at all, and be judged by it.
    def on_validation_epoch_start(self) -> None:
        self.check_numbers()

    def on_test_epoch_start(self) -> None:
        self.check_numbers()

    def on_predict_epoch_start(self) -> None:
        self.check_numbers()

    def _refusal(self, what: str) -> RunError:
        losses = [
            f"{name} was {float(value):g}"
            for name, value in (self._trainer.callback_metrics if self._trainer else {}).items()
            if name.startswith("loss/") and not math.isfinite(float(value))
        ]
        known = f" ({', '.join(losses)})" if losses else ""
        units = (unit for unit in ("updates", "prompts") if f"time/{unit}" in self._measure())
        unit = next(units, "frames")
        return RunError(
            f"{type(self).__name__} on {self.spec.id!r}: {what}{known} after {self.frames:,} "
            f"{unit}, so nothing more can be learned; checkpoints written before are good. "
            f"{self.remedies}"
        )


def check_returns(env: str, returns: Tensor) -> None:
    """Refuse to judge an agent by evaluation returns `[N]` that are not finite.

    Raises:
        RunError: That names the environment.
    """
    bad = returns[~returns.isfinite()]
    if len(bad):
        raise RunError(
            f"{env!r}: an evaluation episode's return is {float(bad[0]):g} in float32, by which no "
            "checkpoint can be judged; make rewards smaller, e.g. by the wrapper TransformReward "
            "or ClipReward"
        )
