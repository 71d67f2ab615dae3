"""PruneNet-v0: how much of each layer of a trained network may go, under a budget.

After He et al. (2018), "AMC: AutoML for model compression and acceleration on mobile devices".
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch

from rl_lightning.core.errors import ConfigurationError, check_one_of, check_range, whole
from rl_lightning.envs.optimise.data import load_data
from rl_lightning.envs.optimise.layer_by_layer import LayerByLayerEnv
from rl_lightning.envs.optimise.layers import LAYER_FEATURES
from rl_lightning.envs.optimise.pruning import (
    Prunable,
    check_budget,
    largest,
    norm_shares,
    prunable,
    prunable_target,
    pruned,
    scaled,
    uniform_shares,
    within_budget,
)
from rl_lightning.envs.optimise.targets import build_target
from rl_lightning.envs.optimise.tasks import LIMIT, bounded, check_positive
from rl_lightning.envs.optimise.training import Recipe, accuracy_and_loss, by_itself, train_on

FEATURES = ("index", *LAYER_FEATURES, "cost", "reduced", "rest", "previous")
CALIBRATION = 128
"""Rows of the training part that reconstruction fits on."""


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

    Only the last step, which terminates the episode, is rewarded, by `reward_scale` times a score.
    `accuracy`: the pruned network's without fine-tuning. `loss`: minus its cross-entropy.
    `error_log_flops`: −(1 − accuracy) · log cost (AMC, section 3.3), with `budget=1`: then the
    agent weighs both. With γ = 1 the return from every step on is that reward. AMC copies it to
    every transition, so that its return-to-go is the reward times the number of steps left: at each
    layer both order the actions alike. An environment cannot pay at a step what is known at the end
    only. AMC subtracts a running mean of earlier rewards from its critic's targets; here `baseline:
    uniform` subtracts the score of uniform pruning of the same network from the reward: it stays as
    it is while replay holds old rewards, and makes several networks comparable.

    With `reconstruct`, weights that read removed channels are fitted to the original outputs on
    128 training inputs before the network is judged, as in AMC. The judged network is the smaller
    one, as `prune_nodes` makes it: nothing of it is simulated.

    `info` holds `kept` and `cost`, the share of the whole cost, at the last step of the pruned
    network, before it as if all later layers stayed whole; at both ends `task_seed`, `width`,
    `depth`, `split` and `original_accuracy`; at the last `accuracy` and `loss` on the validation
    part, and `test_accuracy` if the data have a test part, with `finetune_epochs` also
    `finetuned_test_accuracy`, after as many passes over the training part. With `fill`, `kept` is
    before the last step what was asked for. The attribute `removed` has the nodes that went.

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
        reward: `accuracy`, `loss` or `error_log_flops`.
        judged_on: Rows of that score: `validation`, or `training_too`, with what reconstruction has
            not seen of the training part: three times as many, on which a score depends less on
            luck (`judged_accuracy` and `judged_loss` of `info`).
        baseline: What is subtracted: `none`, or `uniform`.
        reward_scale: Factor of the reward.
        fill: Take shares as relative: after the last action all are multiplied by the largest
            number with which they fit the budget, none above 1, so that none of it is left over.
        around: `none`: an action is the share. `uniform` or `norms`: actions are in [−1, 1] (or
            levels of it), and mean the group's share in uniform pruning, or in that by norms
            relative to the group's mean (`GlobalMagnitude`), times `reach` to that power.
        reach: See `around`.
        places: So many entries behind the `FEATURES`, of which the one of the group's place is 1;
            0 is none.
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
        splits: Sequence[int] = (0, 1),
        seed_range: Sequence[int] = (0, 1_000_000),
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
        judged_on: Literal["validation", "training_too"] = "validation",
        baseline: Literal["none", "uniform"] = "none",
        reward_scale: float = 1.0,
        fill: bool = False,
        around: Literal["none", "uniform", "norms"] = "none",
        reach: float = 2.0,
        places: int = 0,
        finetune_epochs: int = 0,
        render_mode: None = None,
    ) -> None:
        check_one_of("actions", actions, ("continuous", "discrete"))
        check_one_of("reward", reward, ("accuracy", "loss", "error_log_flops"))
        check_one_of("judged_on", judged_on, ("validation", "training_too"))
        check_one_of("baseline", baseline, ("none", "uniform"))
        check_one_of("around", around, ("none", "uniform", "norms"))
        check_one_of("resource", resource, ("flops", "bytes"))
        check_one_of("importance", importance, ("l2", "l1"))
        super().__init__(data, model, widths, depths, 1, splits, seed_range, epochs)
        self.budget = check_positive("budget", budget)
        self.lowest = check_positive("lowest", lowest)
        check_range("budget", budget, 0.0, 1.0)
        check_range("lowest", lowest, 0.0, 1.0)
        if self.lowest == 1:
            raise ConfigurationError("lowest must be below 1: nothing could go")
        self.resource, self.round_to = resource, whole("round_to", round_to, 1)
        self.actions, self.levels = actions, whole("levels", levels, 2)
        self.importance, self.reconstruct, self.reward = importance, reconstruct, reward
        self.judged_on, self.baseline = judged_on, baseline
        self.reward_scale = check_positive("reward_scale", reward_scale)
        self.fill = fill
        self.around, self.reach = around, check_positive("reach", reach)
        if self.reach <= 1:
            raise ConfigurationError(f"reach must be above 1, not {reach}")
        self.places = whole("places", places, 0)
        self.finetune_epochs = whole("finetune_epochs", finetune_epochs, 0)
        self.render_mode = render_mode
        self._centres: dict[str, list[float]] = {}
        self._uniform_scores: dict[str, float] = {}
        self._check_budget()

        shape = (len(FEATURES) + self.places,)
        self.observation_space = gym.spaces.Box(-LIMIT, LIMIT, shape, np.float32)
        if actions == "continuous":
            low = self.lowest if around == "none" else -1.0
            self.action_space = gym.spaces.Box(low, 1.0, (1,), np.float32)
        else:
            self.action_space = gym.spaces.Discrete(self.levels)

    def _whole(self) -> dict[str, Any]:
        self.removed: list[list[int]] = []
        self._shares: list[float] = []
        self._previous = 1.0
        named = f"model={self.model!r} of width {self._width} and depth {self._depth}"
        check_budget(self.prunable(), self.lowest, self.round_to, self.budget, self.resource, named)
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
        nodes = groups[len(self.removed)].nodes
        self._shares.append(share)
        if self.fill:
            self.removed.append(self.removal(len(self.removed), share))
        else:
            limits = (self.budget, self.lowest, self.round_to)
            self.removed.append(within_budget(self.prunable(), self.removed, share, *limits))
        last = len(self.removed) == len(groups)
        if last and self.fill:
            filled = scaled(self._shares, self.fits, self.lowest)
            self.removed = [self.removal(i, share) for i, share in enumerate(filled)]
        self._previous = 1 - len(self.removed[-1]) / nodes
        whole_rest = [()] * (len(groups) - len(self.removed))
        cost = costs.of([*self.removed, *whole_rest])
        info: dict[str, Any] = {"kept": self._previous, "cost": cost / costs.total}
        reward = 0.0
        if last:
            info |= {**self._task(), **self.judge(self.removed)}
            base = self._uniform_score() if self.baseline == "uniform" else 0.0
            reward = self.reward_scale * (self._score(info, cost) - base)
        self._running = not last
        return self._observe(), reward, last, False, info

    def prunable(self) -> Prunable:
        """What can be pruned of the episode's network."""
        return prunable_target(self._named_target(), self.importance, self.resource)

    def fits(self, shares: Sequence[float]) -> bool:
        """Whether a network of which these shares stay, one for each group, is in the budget."""
        costs = self.prunable().costs
        removed = [self.removal(i, share) for i, share in enumerate(shares)]
        return costs.of(removed) <= self.budget * costs.total

    def removal(self, group: int, share: float) -> list[int]:
        """The nodes that go where this share of a group's is to stay."""
        return self.prunable().removal(group, share, self.round_to)

    def actions_of(self, shares: Sequence[float]) -> list[Any]:
        """The actions that keep a share of each group, or the nearest smaller one that there is."""
        found = []
        for share, centre in zip(shares, self.centre(), strict=True):
            low, number = self.lowest, min(max(share, self.lowest), 1.0)
            if self.around != "none":
                exponent = math.log(number / centre) / math.log(self.reach)
                low, number = -1.0, min(max(exponent, -1.0), 1.0)
            level = (number - low) / (1 - low) * (self.levels - 1) + 1e-6
            found.append(
                np.array([number], np.float32) if self.actions == "continuous" else int(level)
            )
        return found

    def centre(self) -> list[float]:
        """Of each group of the episode's network, the share that actions are around."""
        name = f"{self._width} {self._depth} {self._split}"
        if name not in self._centres:
            found = self.prunable()
            norms = self.around == "norms"
            shares = norm_shares(found, normalised=True) if norms else uniform_shares(found)
            self._centres[name] = largest(shares, self.fits, self.lowest)
        return self._centres[name]

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
            found = accuracy_and_loss(small, splits.x_val, splits.y_val)
            if self.judged_on == "training_too":
                x = torch.cat([splits.x_val, splits.x_train[CALIBRATION:]])
                y = torch.cat([splits.y_val, splits.y_train[CALIBRATION:]])
                judged = accuracy_and_loss(small, x, y)
                found |= {f"judged_{name}": value for name, value in judged.items()}
            if splits.x_test is None or splits.y_test is None:
                return found
            tested = accuracy_and_loss(small, splits.x_test, splits.y_test)
            found["test_accuracy"] = tested["accuracy"]
            if self.finetune_epochs:
                recipe = Recipe(epochs=self.finetune_epochs, lr=1e-3)
                train_on(small, splits.x_train, splits.y_train, recipe)
                tested = accuracy_and_loss(small, splits.x_test, splits.y_test)
                found["finetuned_test_accuracy"] = tested["accuracy"]
        return found

    def _uniform_score(self) -> float:
        """What uniform pruning of the episode's network would be rewarded by."""
        name = f"{self._width} {self._depth} {self._split}"
        if name not in self._uniform_scores:
            found = self.prunable()
            shares = largest(uniform_shares(found), self.fits, self.lowest)
            removed = [self.removal(i, share) for i, share in enumerate(shares)]
            self._uniform_scores[name] = self._score(self.judge(removed), found.costs.of(removed))
        return self._uniform_scores[name]

    def _score(self, judged: Mapping[str, float], cost: float) -> float:
        rows = "judged_" if self.judged_on == "training_too" else ""
        if self.reward == "loss":
            return -judged[f"{rows}loss"]
        accuracy = judged[f"{rows}accuracy"]
        return accuracy if self.reward == "accuracy" else -(1 - accuracy) * math.log(cost)

    def _share(self, action: Any) -> float:
        low = self.lowest if self.around == "none" else -1.0
        if self.actions == "continuous":
            # Float32 may lie above the k / n that was meant, which would round up to k + 1.
            number = self._number(action) - 1e-6
        else:
            number = low + (1 - low) * self._choice(action) / (self.levels - 1)
        if self.around != "none":
            number = self.centre()[len(self.removed)] * self.reach ** min(max(number, -1.0), 1.0)
        return min(max(number, self.lowest), 1.0)

    def _check_budget(self) -> None:
        """Refuse what cannot be loaded, built, pruned or met."""
        splits = load_data(self.data, self.splits[0])
        for width, depth in ((w, d) for w in self.widths for d in self.depths):
            network = build_target(self.model, splits.in_shape, splits.classes, width, depth)
            found = prunable(network, splits.x_val[:2], self.importance, self.resource)
            named = f"model={self.model!r} of width {width} and depth {depth}"
            check_budget(found, self.lowest, self.round_to, self.budget, self.resource, named)
            if 0 < self.places < len(found.groups):
                raise ConfigurationError(
                    f"places={self.places} cannot tell the {len(found.groups)} groups of {named} "
                    "apart: give as many or more, or 0"
                )

    def _observe(self) -> np.ndarray:
        groups, _, costs, layers = self.prunable()
        now, whole_rest = len(self.removed), len(groups) - len(self.removed)
        own, share = [0.0] * len(LAYER_FEATURES), 0.0
        if whole_rest:
            own, share = layers[now].features(), costs.of_layers[now] / costs.total
        saved = 1 - costs.of([*self.removed, *[()] * whole_rest]) / costs.total
        rest = sum(costs.of_layers[now + 1 :]) / costs.total
        place = [float(i == now < len(groups)) for i in range(self.places)]
        return bounded([now / len(groups), *own, share, saved, rest, self._previous, *place])
