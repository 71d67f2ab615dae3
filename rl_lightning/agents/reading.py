"""What a tuned language model, and the one that it was, say of completions."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import lightning as L
from tensordict import TensorDict

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.llm.backbone import Backbone
from rl_lightning.llm.reading import Method, Reading, read_completions


class ReadingModule(L.LightningModule):
    """A module with a language model that is tuned, and a reference that is not."""

    backbone: Backbone
    frozen: Backbone | None
    """The reference of a model that is tuned as a whole."""
    reading: Method
    chunk: int
    _model: Callable[..., Backbone]
    _pretrained: bool

    def make_reference(self) -> None:
        """Have a reference model, from now on; call it in `__init__`, where one is needed."""
        own = self.backbone
        if own.tune == "lora":
            return  # the model without its adapters
        if self._pretrained:
            self.frozen = self._model(tune="frozen")  # which no checkpoint holds
        else:
            self.frozen = copy.deepcopy(own)
            self.frozen.requires_grad_(False)

    @contextmanager
    def _reference(self) -> Iterator[Backbone]:
        if self.frozen is not None:
            yield self.frozen
            return
        with self.backbone.model.disable_adapter():
            yield self.backbone

    def read(self, batch: TensorDict, backbone: Backbone | None = None, **asked: Any) -> Reading:
        """What a model says of completions, with gradient where that is on.

        Args:
            batch: Rows `[P]`.
            backbone: The model; None: the one that is tuned.
            **asked: `hidden` or `entropy_grad`, see `read_completions`.
        """
        return read_completions(
            self.backbone if backbone is None else backbone,
            batch["prompt"],
            batch["prompt_length"],
            batch["ids"],
            batch["length"],
            batch["own"],
            batch["temperature"],
            method=self.reading,
            chunk=self.chunk,
            **asked,
        )

    # --- what an agent with an encoder would say ----------------------------------------------

    @property
    def encoders(self) -> Sequence[Any]:
        return ()

    @property
    def mask_dim(self) -> int:
        return 0

    def initial_state(self, num_envs: int) -> None:
        return None

    def act(self, *args: Any, **kwargs: Any) -> Any:
        raise ConfigurationError(
            f"{type(self).__name__} writes completions of prompts and takes no actions; in an "
            "environment a language model acts as GeneratingPolicy or ScoringPolicy of PPO"
        )

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    def encoder_metrics(self) -> dict[str, float]:
        return {}

    def collection_state(self) -> dict[str, Any]:
        return {}

    def load_collection_state(self, state: dict[str, Any]) -> None:
        pass
