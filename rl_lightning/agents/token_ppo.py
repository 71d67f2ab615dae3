"""PPO over tokens, with a value head on the language model."""

from collections.abc import Sequence
from typing import Any

from tensordict import TensorDict
from torch import Tensor, nn

from rl_lightning.agents.penalized import PenalizedAgent
from rl_lightning.agents.policy_loss import policy_loss
from rl_lightning.agents.token_batches import flat, shared, whitened
from rl_lightning.core.errors import check_range
from rl_lightning.core.loss import Loss
from rl_lightning.core.types import EnvSpec
from rl_lightning.maths import losses
from rl_lightning.maths.token_advantages import token_gae
from rl_lightning.maths.token_losses import loss_normalizer, token_value_loss
from rl_lightning.nn.mlp import mlp


class TokenPPO(PenalizedAgent):
    """PPO whose steps are tokens (Ouyang et al. 2022): a critic foretells what a completion will
    be worth from each of its tokens on, and advantages are GAE's, whitened over the batch. Where an
    environment pays for single turns, that is what their last tokens are paid.

    The critic is a small head of the model's last hidden state, where the token is foretold.

    Args:
        spec: Of texts to texts.
        model: See `TokenAgent`.
        gamma: Discount γ per token.
        gae_lambda: λ of generalised advantage estimation.
        kl_coef: β of the penalty −β (log π − log π_ref) that each token's reward has; 0 needs no
            reference.
        clip_range: ε of the clipped surrogate.
        clip_range_value: ε of value clipping, in units of return; None for none.
        value_coef: Weight of the value loss ½(V − G)².
        critic_hidden: Widths of the critic's layers.
        critic_lr: Learning rate of the critic; None: the optimizer's.
        detach_critic: Keep the critic's gradient from the model.
        **shared: Arguments of `TokenAgent`.
    """

    def __init__(
        self,
        spec: EnvSpec,
        model: str,
        *,
        gamma: float = 1.0,
        gae_lambda: float = 0.95,
        kl_coef: float = 0.05,
        clip_range: float = 0.2,
        clip_range_value: float | None = 0.2,
        value_coef: float = 0.1,
        critic_hidden: Sequence[int] = (128,),
        critic_lr: float | None = 1e-3,
        detach_critic: bool = False,
        **shared: Any,
    ) -> None:
        super().__init__(spec, model, kl_coef=kl_coef, gamma=gamma, **shared)
        check_range("model.gae_lambda", gae_lambda, 0.0, 1.0)
        check_range("model.clip_range", clip_range, 0.0, 1.0)
        check_range("model.clip_range_value", clip_range_value, 0.0)
        check_range("model.value_coef", value_coef, 0.0)
        check_range("model.critic_lr", critic_lr, 0.0)
        self.gae_lambda = gae_lambda
        self.clip_range = clip_range
        self.clip_range_value = clip_range_value
        self.value_coef = value_coef
        self.critic_lr = critic_lr
        self.detach_critic = detach_critic
        width = self.backbone.hidden_size
        # Hidden states of different models differ in size by orders of magnitude.
        self.critic = nn.Sequential(nn.LayerNorm(width), mlp(width, critic_hidden, "relu", 1))

    @property
    def needs_log_prob(self) -> bool:
        return True

    def parameter_groups(self) -> list[dict[str, Any]]:
        (group,) = super().parameter_groups()
        own = set(self.critic.parameters())
        rest = [p for p in group["params"] if p not in own]
        rate = {} if self.critic_lr is None else {"lr": self.critic_lr}
        return [{"params": rest}, {"params": list(self.critic.parameters()), **rate}]

    def value(self, hidden: Tensor) -> Tensor:
        """V of hidden states, `[..., D]` → `[...]`."""
        states = hidden.detach() if self.detach_critic else hidden
        return self.critic(states.float())[..., 0].float()

    def recall(self, batch: TensorDict) -> dict[str, Tensor]:
        read = self.read(batch, hidden=True)
        assert read.hidden is not None
        return {"log_prob": read.log_prob, "value": self.value(read.hidden)}

    def advantages(self, batch: TensorDict) -> dict[str, Tensor]:
        own, reward = flat(batch["own"]), self.penalized(batch)
        value = flat(batch["value"])
        advantage, target = token_gae(reward, value, own, self.gamma, self.gae_lambda)
        explained = losses.explained_variance(value, target, own)
        self.rollout_metrics = {**self.rollout_metrics, "value/explained_variance": explained}
        shape = batch["own"].shape
        return {"advantage": whitened(advantage, own).view(shape), "target": target.view(shape)}

    def normalizer(self, batch: TensorDict) -> Tensor:
        return loss_normalizer(flat(batch["own"]), "dapo")

    def loss(self, batch: TensorDict) -> Loss:
        read = self.read(batch, hidden=True)
        assert read.hidden is not None
        epsilon = self.clip_range
        policy = policy_loss(batch, read, clip_low=epsilon, clip_high=epsilon)
        value_loss = token_value_loss(
            flat(self.value(read.hidden)),
            flat(batch["target"]),
            flat(batch["own"]),
            flat(batch["value"]),
            self.clip_range_value,
            shared(batch, "normalizer"),
        )
        return Loss(
            policy.value + self.value_coef * value_loss,
            lambda: {**policy.metrics, "loss/value": value_loss},
        )
