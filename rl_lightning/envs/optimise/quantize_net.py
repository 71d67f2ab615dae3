"""QuantizeNet-v0: how many bits each layer of a trained network gets, under a budget.

After Wang et al. (2019), "HAQ: Hardware-aware automated quantization with mixed precision".
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import gymnasium as gym
import numpy as np

from rl_lightning.compress.quantisable import BITS
from rl_lightning.core.errors import ConfigurationError, check_one_of, check_range
from rl_lightning.envs.optimise.data import load_data
from rl_lightning.envs.optimise.layer_by_layer import LayerByLayerEnv
from rl_lightning.envs.optimise.layers import LAYER_FEATURES
from rl_lightning.envs.optimise.quantising import (
    Quantisable,
    check_fits,
    filled,
    judged,
    probed_target,
    quantisable_of,
    quantisable_target,
    uniformly_judged,
    within_budget,
)
from rl_lightning.envs.optimise.targets import build_target
from rl_lightning.envs.optimise.tasks import (
    LIMIT,
    bounded,
    check_choices,
    check_positive,
)

FEATURES = ("index", *LAYER_FEATURES, "size", "spent", "rest", "previous")
LEAST = 1e-6
"""Nats below which a divergence counts as these, where its logarithm is taken."""


class QuantizeNetEnv(LayerByLayerEnv):
    """Choose, layer after layer, the bits of its weights; be rewarded for what accuracy is left.

    An episode goes once through the layers of a trained network that `quantise` can store in fewer
    bits. The seed of its task, drawn from `seed_range`, decides the network's width and depth and
    the division of the data it was trained on, among `widths`, `depths` and `splits`: with one of
    each there is one task, and disjoint `widths`, `depths` or `splits` hold networks out.
    `reset(options={"task_seed": k})` plays a certain task.

    A discrete action is one of `bits`, by its place; a continuous one in [0, 1] is divided evenly
    among them. Only weights are quantised: what `quantise` offers. **The budget cannot be
    exceeded**: if the size after the last action is above it, layers are lowered to their next
    smaller choice in turn, from the last to the first and over again, until it is not (HAQ,
    section 3.2, which lowers all layers in turn).

    Observations are the `FEATURES` (HAQ, equations 1 and 2), in [-10, 10]: the layer's place, kind,
    inputs, outputs, stride, kernel and pixels, weights and multiply-accumulates as decimal
    logarithms; as shares of the budget: this layer's size at the most bits, what earlier choices
    have spent, and the later layers' size at the fewest; and logarithm of the bits chosen before.
    After the last step the layer's features are 0. With `probes` there follows, for each of
    `bits`, the decimal logarithm of the divergence (below) with this layer alone at that width:
    layers · widths evaluations, once for each network. Without, networks of one shape look alike.

    With `fill`, choices are relative: after the lowering, layers are raised to their next larger
    choice that fits, in turn, from the first to the last and over again, so that no part of the
    budget that could be used is left over.

    Only the last step, which terminates the episode, is rewarded, by the validation part:
    `reward_scale` · (accuracy − original accuracy), or with `reward: divergence` −`reward_scale` ·
    KL(original ‖ quantised) in nats, which tells networks of equal accuracy apart and follows test
    accuracy more closely than the loss, which also falls where a network only gets less sure;
    `log_divergence` is −`reward_scale` · log KL, whose differences are ratios, alike in networks
    that bear rounding well and badly. HAQ
    (equation 5) has 0.1 for accuracies in per cent, which is 10 for shares. Unlike there, the
    network is not trained on before it is judged. `baseline: uniform` subtracts what uniform bits
    within the budget would be rewarded by, which makes several networks comparable.

    `info` holds `bits`, of the step's layer as it was chosen; at both ends `task_seed`, `width`,
    `depth`, `split` and `original_accuracy`; at the last `accuracy`, `loss`, `divergence`, `size`
    (as a share of the whole network's bytes), `mean_bits` of a weight and, if the data have a test
    part, `test_accuracy`. The attribute `bits_of_layers` then has what came out of the budget's
    rule.

    Args:
        data: See `load_data`.
        model: See `build_target`.
        widths: Widths to draw from.
        depths: Depths to draw from.
        splits: Half-open range of seeds of the division of the data.
        seed_range: Half-open range of task seeds.
        epochs: Of training the network before anything is quantised, once, see `trained_target`.
        bits: Widths to choose from: of 1 to 8, 16 and 32 (as it is).
        budget: In bits: as many bytes as all layers take at this width, between two supported
            widths linearly. With 4, what uniform 4-bit quantisation takes.
        actions: `discrete` or `continuous`.
        reward: `accuracy`, `divergence` or `log_divergence`.
        reward_scale: What either is multiplied by.
        probes: Whether observations tell what each width of a layer does by itself.
        fill: Whether what is left over of the budget is used up.
        baseline: What is subtracted: `none`, or `uniform`.

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
        bits: Sequence[int] = (1, 2, 4, 8),
        budget: float = 4.0,
        actions: Literal["discrete", "continuous"] = "discrete",
        reward: Literal["accuracy", "divergence", "log_divergence"] = "accuracy",
        reward_scale: float = 10.0,
        probes: bool = False,
        fill: bool = False,
        baseline: Literal["none", "uniform"] = "none",
        render_mode: None = None,
    ) -> None:
        check_one_of("actions", actions, ("discrete", "continuous"))
        check_one_of("reward", reward, ("accuracy", "divergence", "log_divergence"))
        check_one_of("baseline", baseline, ("none", "uniform"))
        super().__init__(data, model, widths, depths, 0, splits, seed_range, epochs)
        self.bits = tuple(sorted(check_choices("bits", bits, 1)))
        if len(self.bits) < 2 or not set(self.bits) <= set(BITS):
            known = ", ".join(map(str, BITS))
            raise ConfigurationError(f"bits must be two or more of {known}, not {list(bits)}")
        self.budget = check_positive("budget", budget)
        check_range("budget", budget, 1.0, 32.0)
        self.actions, self.reward = actions, reward
        self.reward_scale = check_positive("reward_scale", reward_scale)
        self.probes, self.fill, self.baseline = probes, fill, baseline
        self.render_mode = render_mode
        self._check_budget()

        shape = (len(FEATURES) + self.probes * len(self.bits),)
        self.observation_space = gym.spaces.Box(-LIMIT, LIMIT, shape, np.float32)
        if actions == "continuous":
            self.action_space = gym.spaces.Box(0.0, 1.0, (1,), np.float32)
        else:
            self.action_space = gym.spaces.Discrete(len(self.bits))

    def _whole(self) -> dict[str, Any]:
        self.bits_of_layers: list[int] = []
        named = self._named(self._width, self._depth)
        check_fits(self.quantisable(), self.bits, self.budget, named)
        return {"bits": 32}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Choose the next layer's bits.

        Raises:
            ResetNeeded: If no episode is running.
            ValueError: If `action` is none of the action space.
        """
        self._check_running()
        self.bits_of_layers.append(self._bits(action))
        info: dict[str, Any] = {"bits": self.bits_of_layers[-1]}
        found, reward = self.quantisable(), 0.0
        last = len(self.bits_of_layers) == len(found.names)
        if last:
            limits = (self.bits, self.budget)
            self.bits_of_layers = within_budget(found, self.bits_of_layers, *limits)
            if self.fill:
                self.bits_of_layers = filled(found, self.bits_of_layers, *limits)
            weights = [layer.weights for layer in found.layers]
            info |= {**self._task(), **self.judge(self.bits_of_layers)}
            info["mean_bits"] = float(np.average(self.bits_of_layers, weights=weights))
            info["size"] = found.size_of(self.bits_of_layers) / found.uniform_size(32)
            base = self._uniform_score() if self.baseline == "uniform" else 0.0
            reward = self.reward_scale * (self._score(info) - base)
        self._running = not last
        return self._observe(), reward, last, False, info

    def quantisable(self) -> Quantisable:
        """What can be quantised of the episode's network."""
        return quantisable_target(self._named_target())

    def uniform_bits(self) -> int:
        """The most bits that all layers of the episode's network can have within the budget."""
        bits = self.quantisable().uniform_bits(self.bits, self.budget)
        assert bits is not None, "reset has checked the budget"
        return bits

    def probed(self) -> np.ndarray:
        """Divergence of the episode's network with one layer alone at each width, `[L, bits]`."""
        return probed_target(self._named_target(), self.bits)

    def action_of(self, bits: int) -> Any:
        """The action that chooses this width, or the nearest smaller one, or the smallest."""
        place = max(sum(choice <= bits for choice in self.bits) - 1, 0)
        if self.actions == "continuous":
            return np.array([(place + 0.5) / len(self.bits)], np.float32)
        return place

    def judge(self, bits: Sequence[int]) -> dict[str, float]:
        """What a choice of bits comes to.

        `accuracy`, `loss` and `divergence` on the validation part; `test_accuracy` if there is a
        test part.

        Args:
            bits: Of each layer; any of `BITS`, whatever the budget.

        Raises:
            ConfigurationError: If there are not as many, or of other widths.
            ResetNeeded: Before the first episode.
        """
        return judged(self._named_target(), bits)

    def _score(self, judged: Mapping[str, float]) -> float:
        if self.reward == "accuracy":
            return judged["accuracy"] - self._original
        if self.reward == "divergence":
            return -judged["divergence"]
        return -math.log(max(judged["divergence"], LEAST))

    def _uniform_score(self) -> float:
        """What uniform bits of the episode's network would be rewarded by, before scaling."""
        return self._score(uniformly_judged(self._named_target(), self.uniform_bits()))

    def _bits(self, action: Any) -> int:
        choices = len(self.bits)
        if self.actions == "continuous":
            share = min(max(self._number(action), 0.0), 1.0)
            return self.bits[min(int(share * choices), choices - 1)]
        return self.bits[self._choice(action)]

    def _check_budget(self) -> None:
        """Refuse what cannot be loaded, built, quantised or met."""
        splits = load_data(self.data, self.splits[0])
        for width, depth in ((w, d) for w in self.widths for d in self.depths):
            network = build_target(self.model, splits.in_shape, splits.classes, width, depth)
            found = quantisable_of(network, splits.x_val[:1])
            check_fits(found, self.bits, self.budget, self._named(width, depth))

    def _named(self, width: int, depth: int) -> str:
        return f"model={self.model!r} of width {width} and depth {depth}"

    def _observe(self) -> np.ndarray:
        found, now = self.quantisable(), len(self.bits_of_layers)
        budget = found.uniform_size(self.budget)
        fewest, most = found.column(self.bits[0]), found.column(self.bits[-1])
        own, size = [0.0] * len(LAYER_FEATURES), 0.0
        if now < len(found.names):
            own, size = found.layers[now].features(), float(most[now]) / budget
        chosen = zip(found.sizes, self.bits_of_layers, strict=False)
        spent = found.rest + float(sum(row[BITS.index(b)] for row, b in chosen))
        rest = float(fewest[now + 1 :].sum()) / budget
        previous = float(np.log2(self.bits_of_layers[-1] if now else 32)) / 5
        probes = [0.0] * (self.probes * len(self.bits))
        if self.probes and now < len(found.names):
            probes = np.log10(self.probed()[now].clip(min=LEAST)).tolist()
        seen = [now / len(found.names), *own, size, spent / budget, rest, previous, *probes]
        return bounded(seen)
