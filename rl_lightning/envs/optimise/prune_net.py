"""PruneNet-v0: how much of each layer of a trained network may go, under a budget.

After He et al. (2018), "AMC: AutoML for model compression and acceleration on mobile devices".
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F

from rl_lightning.core.errors import ConfigurationError, check_finite, check_one_of, check_range, whole
from rl_lightning.envs.optimise.data import load_data
from rl_lightning.envs.optimise.layer_by_layer import LayerByLayerEnv
from rl_lightning.envs.optimise.layers import LAYER_FEATURES
from rl_lightning.envs.optimise.pruning import (
    Prunable,
    largest,
    prunable,
    prunable_target,
    pruned,
    scaled,
)
from rl_lightning.envs.optimise.targets import Recipe, accuracy_of, build_target, by_itself, train
from rl_lightning.envs.optimise.tasks import (
    LIMIT,
    bounded,
    check_positive,
)

FEATURES = ("index", *LAYER_FEATURES, "cost", "reduced", "rest", "previous")
CALIBRATION = 128
"""Rows of the training part that reconstruction fits on."""
LOSS_LIMIT = 10.0
"""Highest cross-entropy that is told: a pruned network may be wrong with any confidence."""


class PruneNetEnv(LayerByLayerEnv):
    """Choose, layer after layer, the share of its channels that stays; be rewarded for accuracy.

    An episode goes once through the groups of layers of a trained network whose nodes (units,
    channels) can go: one step each; layers that are summed up (a residual connection) are one
    group. The seed of its task, drawn from `seed_range`, decides the network's width and depth and
    the division of the data it was trained on, among `widths`, `depths` and `splits`: with one of
    each there is one task, and disjoint `widths`, `depths` or `splits` hold networks out.
    `reset(options={"task_seed": k})` plays a certain task.

    The action is the share that stays, a number in [lowest, 1], or with discrete actions one of
    `levels` of them, evenly spaced. The least important nodes go, by `prune_nodes`' measure on the
    trained weights. **The budget cannot be exceeded**: a share is lowered where otherwise the later
    layers could not make up for it at their lowest (AMC, algorithm 1); what was done stands in
    `info["kept"]`.

    Observations are the `FEATURES` (AMC, section 3.1), in [-10, 10]: the group's place; of its
    first layer the kind, inputs, outputs, stride, kernel and pixels, and of all its layers weights
    and multiply-accumulates, as decimal logarithms; as shares of the whole network's cost: the
    group's layers, what earlier steps have saved, and what the layers of later groups cost; the
    share kept in the step before. After the last step the group's features are 0.

    Only the last step, which terminates the episode, is rewarded. `accuracy`: the pruned network's
    on the validation part, without fine-tuning. `error_log_flops`: −(1 − accuracy) · log cost
    (AMC, section 3.3), with `budget=1`: then the agent weighs both. With γ = 1 the return
    from every step on is that reward. AMC copies it to every transition instead, so that its
    return-to-go is the reward times the number of steps left: at each layer both order the actions
    alike. An environment cannot pay at a step what is known at the end only.

    With `reconstruct`, weights that read removed channels are fitted to the original outputs on
    128 training inputs before the network is judged, as in AMC. The judged network is the smaller
    one, as `prune_nodes` makes it: nothing of it is simulated.

    `info` holds `kept` and `cost`, the share of the whole cost, at the last step of the pruned
    network, before it as if all later layers stayed whole; at both ends `task_seed`, `width`,
    `depth`, `split` and `original_accuracy`; at the last `accuracy`, and `test_accuracy` if the
    data have a test part, with `finetune_epochs` also `finetuned_test_accuracy`, after as many
    passes over the training part.

    Args:
        data: See `load_data`.
        model: See `build_target`.
        widths: Widths to draw from.
        depths: Depths to draw from.
        splits: Half-open range of seeds of the division of the data.
        seed_range: Half-open range of task seeds.
        epochs: Of training the network before anything is pruned, once, see `trained_target`.
        budget: Share of the cost that the pruned network may have at most, in (0, 1].
        resource: What costs: `flops` (multiply-accumulates) or `bytes` (parameters and buffers).
        lowest: Least share that stays of a group.
        round_to: Nodes that stay are rounded up to a multiple of this; the paper uses 8.
        actions: `continuous` or `discrete`.
        levels: Number of discrete actions.
        importance: `l2` or `l1`, see `prune_nodes`.
        reconstruct: Whether later weights are fitted.
        reward: `accuracy` or `error_log_flops`.
        finetune_epochs: Passes before the last test; 0 is none.

    Raises:
        ConfigurationError: If an argument is out of its range, or the budget cannot be met.
    """

    def __init__(
        self,
        data: str = "digits-images",
        model: str = "cnn",
        widths: Sequence[int] = (16,),
        depths: Sequence[int] = (12,),
        splits: tuple[int, int] | list[int] = (0, 1),
        seed_range: tuple[int, int] | list[int] = (0, 1_000_000),
        epochs: int = 30,
        budget: float = 0.5,
        resource: Literal["flops", "bytes"] = "flops",
        lowest: float = 0.2,
        round_to: int = 1,
        actions: Literal["continuous", "discrete"] = "continuous",
        levels: int = 9,
        importance: Literal["l2", "l1"] = "l2",
        reconstruct: bool = True,
        reward: Literal["accuracy", "loss", "error_log_flops"] = "accuracy",
        baseline: Literal["none", "uniform"] = "none",
        reward_scale: float = 1.0,
        fill: bool = False,
        around_uniform: float | None = None,
        finetune_epochs: int = 0,
        render_mode: None = None,
    ) -> None:
        check_one_of("actions", actions, ("continuous", "discrete"))
        check_one_of("reward", reward, ("accuracy", "loss", "error_log_flops"))
        check_one_of("baseline", baseline, ("none", "uniform"))
        check_one_of("resource", resource, ("flops", "bytes"))
        check_one_of("importance", importance, ("l2", "l1"))
        super().__init__(data, model, widths, depths, 1, splits, seed_range, epochs)
        self.budget, self.lowest = (
            check_positive("budget", budget),
            check_positive("lowest", lowest),
        )
        check_range("budget", budget, 0.0, 1.0)
        check_range("lowest", lowest, 0.0, 1.0)
        if self.lowest == 1:
            raise ConfigurationError("lowest must be below 1: nothing could go")
        self.resource, self.round_to = resource, whole("round_to", round_to, 1)
        self.actions, self.levels = actions, whole("levels", levels, 2)
        self.importance, self.reconstruct, self.reward = importance, bool(reconstruct), reward
        self.baseline, self.reward_scale = baseline, check_positive("reward_scale", reward_scale)
        self.fill = bool(fill)
        check_finite("around_uniform", around_uniform)
        if around_uniform is not None and around_uniform <= 1:
            raise ConfigurationError(
                f"around_uniform={around_uniform:g} must be above 1: what uniform pruning's share "
                "is multiplied by at most"
            )
        self.around_uniform = around_uniform
        self.finetune_epochs = whole("finetune_epochs", finetune_epochs, 0)
        self.render_mode = render_mode
        self._uniform_shares: dict[str, float] = {}
        self._uniform_scores: dict[str, float] = {}
        self._check_budget()

        self.observation_space = gym.spaces.Box(-LIMIT, LIMIT, (len(FEATURES),), np.float32)
        if actions == "continuous":
            low = self.lowest if around_uniform is None else -1.0
            self.action_space = gym.spaces.Box(low, 1.0, (1,), np.float32)
        else:
            self.action_space = gym.spaces.Discrete(self.levels)

    def _begin(self) -> dict[str, Any]:
        self._removed: list[list[int]] = []
        self._shares: list[float] = []
        self._previous = 1.0
        self._check_lowest(self.prunable(), self._width, self._depth)
        return {"kept": 1.0, "cost": 1.0}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Prune the next group.

        Raises:
            ResetNeeded: If no episode is running.
            ValueError: If `action` is none of the action space.
        """
        self._check_running()
        share = self._share(action)
        groups, _, costs, _ = self.prunable()
        nodes = groups[len(self._removed)].nodes
        self._shares.append(share)
        now = len(self._removed)
        gone = self.removal(now, share) if self.fill else self._within_budget(share)
        self._removed.append(gone)
        last = len(self._removed) == len(groups)
        if last and self.fill:
            filled = scaled(self._shares, self.fits, self.lowest)
            self._removed = [self.removal(i, share) for i, share in enumerate(filled)]
        self._previous = 1 - len(self._removed[-1]) / nodes
        whole_rest = [()] * (len(groups) - len(self._removed))
        cost = costs.of([*self._removed, *whole_rest])
        info: dict[str, Any] = {"kept": self._previous, "cost": cost / costs.total}
        reward = 0.0
        if last:
            info |= {**self._task(), **self.judge(self._removed)}
            base = self._uniform_score() if self.baseline == "uniform" else 0.0
            reward = self.reward_scale * (self._score(info, cost) - base)
        self._running = not last
        return self._observe(), reward, last, False, info

    def prunable(self) -> Prunable:
        """What can be pruned of the episode's network."""
        names = (self._width, self._depth, self._split, self.epochs)
        return prunable_target(self.model, self.data, *names, self.importance, self.resource)

    def fits(self, shares: Sequence[float]) -> bool:
        """Whether a network of which these shares stay, one for each group, is in the budget."""
        costs = self.prunable().costs
        removed = [self.removal(i, share) for i, share in enumerate(shares)]
        return costs.of(removed) <= self.budget * costs.total

    def removal(self, group: int, share: float) -> list[int]:
        """The nodes that go where this share of a group's is to stay."""
        return self.prunable().removal(group, share, self.round_to)

    def action_of(self, share: float) -> Any:
        """The action that keeps this share, or the nearest smaller one that there is."""
        low, number = self.lowest, min(max(share, self.lowest), 1.0)
        if self.around_uniform is not None:
            exponent = math.log(number / self.uniform_share()) / math.log(self.around_uniform)
            low, number = -1.0, min(max(exponent, -1.0), 1.0)
        if self.actions == "continuous":
            return np.array([number], np.float32)
        return int((number - low) / (1 - low) * (self.levels - 1) + 1e-6)

    def judge(self, removed: Sequence[Sequence[int]]) -> dict[str, float]:
        """Accuracies of the smaller network, see `info` of the last step.

        Args:
            removed: Of each group, the nodes to remove.
        """
        groups = self.prunable().groups
        network, splits = self.target()
        with by_itself():
            calibration = splits.x_train[:CALIBRATION]
            small = pruned(network, groups, removed, calibration, self.reconstruct)
            with torch.no_grad():
                logits = small(splits.x_val)
            loss = F.cross_entropy(logits, splits.y_val).item()
            found = {
                "accuracy": accuracy_of(logits, splits.y_val),
                "loss": min(loss, LOSS_LIMIT) if math.isfinite(loss) else LOSS_LIMIT,
            }
            if splits.x_test is None or splits.y_test is None:
                return found
            with torch.no_grad():
                found["test_accuracy"] = accuracy_of(small(splits.x_test), splits.y_test)
            if self.finetune_epochs:
                recipe = Recipe(epochs=self.finetune_epochs, lr=1e-3)
                train(small, splits.x_train, splits.y_train, recipe)
                with torch.no_grad():
                    found["finetuned_test_accuracy"] = accuracy_of(
                        small(splits.x_test), splits.y_test
                    )
        return found

    def uniform_share(self) -> float:
        """The largest share that can stay of every group of the episode's network."""
        name = f"{self._width} {self._depth} {self._split}"
        if name not in self._uniform_shares:
            groups = len(self.prunable().groups)
            found = largest(lambda share: [share] * groups, self.fits, self.lowest)
            self._uniform_shares[name] = found[0]
        return self._uniform_shares[name]

    def _uniform_score(self) -> float:
        """What uniform pruning of the episode's network would be rewarded by."""
        name = f"{self._width} {self._depth} {self._split}"
        if name not in self._uniform_scores:
            groups, _, costs, _ = self.prunable()
            removed = [self.removal(i, self.uniform_share()) for i in range(len(groups))]
            self._uniform_scores[name] = self._score(self.judge(removed), costs.of(removed))
        return self._uniform_scores[name]

    def _score(self, judged: Mapping[str, float], cost: float) -> float:
        if self.reward == "loss":
            return -judged["loss"]
        error = 1 - judged["accuracy"]
        return judged["accuracy"] if self.reward == "accuracy" else -error * math.log(cost)

    def _share(self, action: Any) -> float:
        low = self.lowest if self.around_uniform is None else -1.0
        if self.actions == "continuous":
            # Float32 may lie above the k / n that was meant, which would round up to k + 1.
            number = self._number(action, None) - 1e-6
        else:
            number = low + (1 - low) * int(self._number(action, self.levels)) / (self.levels - 1)
        if self.around_uniform is not None:
            number = self.uniform_share() * self.around_uniform ** min(max(number, -1.0), 1.0)
        return min(max(number, self.lowest), 1.0)

    def _within_budget(self, share: float) -> list[int]:
        """The nodes that go: as asked, or as few more as later groups need (AMC, algorithm 1)."""
        groups, _, costs, _ = self.prunable()
        now = len(self._removed)
        later = [self.removal(i, self.lowest) for i in range(now + 1, len(groups))]
        nodes = groups[now].nodes

        def removed(stay: int) -> list[int]:
            return self.removal(now, stay / nodes)

        def fits(stay: int) -> bool:
            return costs.of([*self._removed, removed(stay), *later]) <= self.budget * costs.total

        most = nodes - len(self.removal(now, share))
        least = nodes - len(self.removal(now, self.lowest))  # fits, or reset would have refused
        while least < most:
            middle = (least + most + 1) // 2
            least, most = (middle, most) if fits(middle) else (least, middle - 1)
        return removed(least)

    def _check_budget(self) -> None:
        """Refuse what cannot be loaded, built, pruned or met."""
        splits = load_data(self.data, self.splits[0])
        for width, depth in ((w, d) for w in self.widths for d in self.depths):
            network = build_target(self.model, splits.in_shape, splits.classes, width, depth)
            found = prunable(network, splits.x_val[:2], self.importance, self.resource)
            self._check_lowest(found, width, depth)

    def _check_lowest(self, found: Prunable, width: int, depth: int) -> None:
        if not found.groups:
            raise ConfigurationError(
                f"model={self.model!r} of width {width} and depth {depth} has no layer that can be "
                "pruned"
            )
        lowest = [found.removal(i, self.lowest, self.round_to) for i in range(len(found.groups))]
        share = found.costs.of(lowest) / found.costs.total
        if share > self.budget:
            raise ConfigurationError(
                f"budget={self.budget:g} cannot be met: with lowest={self.lowest:g} a network of "
                f"width {width} and depth {depth} keeps at least "
                f"{math.ceil(share * 1000) / 1000:g} of its {self.resource}"
            )

    def _observe(self) -> np.ndarray:
        groups, _, costs, layers = self.prunable()
        now, whole_rest = len(self._removed), len(groups) - len(self._removed)
        own, share = [0.0] * len(LAYER_FEATURES), 0.0
        if whole_rest:
            own, share = layers[now].features(), costs.of_layers[now] / costs.total
        saved = 1 - costs.of([*self._removed, *[()] * whole_rest]) / costs.total
        rest = sum(costs.of_layers[now + 1 :]) / costs.total
        return bounded([now / len(groups), *own, share, saved, rest, self._previous])
