"""A policy that writes: a language model's text is parsed into an action."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from tensordict import TensorDict
from torch import Tensor

from rl_lightning.core.errors import (
    ConfigurationError,
    RunError,
    check_finite,
    check_one_of,
    check_range,
    whole,
)
from rl_lightning.core.types import EnvSpec, Stored
from rl_lightning.llm.generation import Generated, speak, write
from rl_lightning.llm.sampling import Sampling
from rl_lightning.maths.distributions import Categorical, mask_logits
from rl_lightning.nn.mlp import Activation
from rl_lightning.policies.parsing import ActionParser
from rl_lightning.policies.policy import Evaluation
from rl_lightning.policies.scoring import TextPolicy, check_choice

OnIllegal = Literal["penalize", "resample", "replace"]


class GeneratingPolicy(TextPolicy):
    """π(text|s) of a language model that writes, and an action that is read out of the text.

    log π is the sum over the written tokens' log-probabilities, so that the gradient is that of the
    text and not of the action: several texts may mean the same. What was sampled is kept as tokens.
    A text that names no action that there is, or one that is not allowed, is *illegal*: a uniformly
    drawn one is played in its place, and `policy/illegal` counts it.

    Args:
        spec: The environment's spaces; actions are Discrete.
        encoder: Builds the encoder, a `TextActionEncoder` with `tune: lora` or `full`.
        max_new_tokens: Most tokens of a text.
        temperature: Of sampling, and of log π. Greedy actions are written without.
        stop: Texts that end the writing, beside the model's own end.
        answer: A regular expression whose first group is the answer, for models that think first:
            `<answer>(.*?)</answer>`. None: the whole text.
        on_illegal: Whether an illegal text is also paid for (`penalize`), or written anew up to
            `retries` times before an action takes its place (`resample`), or neither (`replace`).
        illegal_reward: What `penalize` adds to the reward that is learned from.
        retries: Of `resample`.
        critic_hidden: Widths of the critic's layers.
        critic_activation: Of those layers.
        detach_critic: Keep the critic's gradient from the model.
        critic: Whether there is a value head.
    """

    evaluates_while_acting = True

    def __init__(
        self,
        spec: EnvSpec,
        encoder: Callable[[EnvSpec], Any],
        max_new_tokens: int = 8,
        temperature: float = 1.0,
        stop: Sequence[str] = ("\n",),
        answer: str | None = None,
        on_illegal: OnIllegal = "penalize",
        illegal_reward: float = -0.1,
        retries: int = 3,
        critic_hidden: Sequence[int] = (64,),
        critic_activation: Activation = "tanh",
        detach_critic: bool = False,
        critic: bool = True,
    ) -> None:
        super().__init__(spec, encoder, critic_hidden, critic_activation, detach_critic, critic)
        check_one_of("on_illegal", on_illegal, get_args(OnIllegal))
        check_range("temperature", temperature, 1e-6)
        check_finite("illegal_reward", illegal_reward)
        self.max_new_tokens = whole("max_new_tokens", max_new_tokens, 1)
        self.retries = whole("retries", retries, 1) if on_illegal == "resample" else 0
        self.temperature = temperature
        self.stop = (stop,) if isinstance(stop, str) else tuple(stop)
        self.parser = ActionParser(answer)
        self.on_illegal: OnIllegal = on_illegal
        self.illegal_reward = illegal_reward
        if self.encoder.frozen:
            raise ConfigurationError(
                "GeneratingPolicy: a frozen model writes, but learns nothing, and keeps its tokens "
                "nowhere; give the encoder tune: lora, which begins as the model itself"
            )
        if self.encoder.choices.names is not None:
            try:
                self.parser.said_by(self.encoder.choices.names)
            except RunError as error:
                raise ConfigurationError(str(error)) from None
        self._check_room()
        self._texts = self._illegal = 0

    def _check_room(self) -> None:
        positions = self.encoder.backbone.positions
        if self.encoder.backbone.encoder_decoder or positions is None:
            return
        asked = self.encoder.choices.max_length + self.max_new_tokens
        if asked > positions:
            raise ConfigurationError(
                f"max_length={self.encoder.choices.max_length} and max_new_tokens="
                f"{self.max_new_tokens} are more than the {positions} tokens the model reads"
            )

    # --- acting -------------------------------------------------------------------------------

    def act(
        self,
        x: Stored,
        explore: bool = True,
        state: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Write, and read an action out of it.

        Returns:
            `action` `[B]`; `latent`, the written `ids` int32 `[B, T]` and their `length`; `illegal`
            bool `[B]`; where it explores also `log_prob` and `value` `[B]`.
        """
        prompt, length = self.encoder.prompts(x)
        temperature = self.temperature if explore else 0.0
        written = self._write(prompt, length, temperature)
        names = self.encoder.action_texts(x)
        action = self._read(written, names, mask)
        for _ in range(self.retries if explore else 0):
            again = (action < 0).nonzero()[:, 0]
            if not len(again):
                break
            anew = self._write(prompt[again], length[again], temperature)
            own = None if mask is None else mask[again]
            action[again] = self._read(anew, [names[i] for i in again.tolist()], own)
            for part, other in zip(written, anew, strict=True):
                part[again] = other
        illegal = action < 0
        self._texts, self._illegal = self._texts + len(action), self._illegal + int(illegal.sum())
        if bool(illegal.any()):
            action = torch.where(illegal, self._any_action(names, mask), action)
        out: dict[str, Any] = {
            "action": action + self.start,
            "latent": {"ids": written.ids.int(), "length": written.length},
            "illegal": illegal,
        }
        if not explore:  # nothing is learned from it
            return out
        # Not what was said when writing: token by token bfloat16 rounds otherwise.
        spoken = self._speak(x, written.ids, written.length)
        out["log_prob"] = spoken.log_prob
        if self.critic is not None:
            out["value"] = spoken.value
        return out

    def _write(self, prompt: Tensor, length: Tensor, temperature: float) -> Generated:
        sampling = Sampling(self.max_new_tokens, temperature, stop=self.stop)
        return write(self.encoder.backbone, prompt, length, sampling)

    def _read(self, written: Generated, names: list[list[str]], mask: Tensor | None) -> Tensor:
        """Indices of the actions that were written, −1 where there is none, int64 `[B]`."""
        tokenizer = self.encoder.backbone.tokens.tokenizer
        rows = zip(written.ids.tolist(), written.length.tolist(), strict=True)
        ids = [row[:length] for row, length in rows]
        texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
        found = [self.parser(text, own) for text, own in zip(texts, names, strict=True)]
        action = torch.tensor([-1 if k is None else k for k in found], device=written.ids.device)
        if mask is None:
            return action
        allowed = mask.gather(1, action.clamp(min=0)[:, None])[:, 0]
        return torch.where(allowed, action, -1)

    def _any_action(self, names: list[list[str]], mask: Tensor | None) -> Tensor:
        """Uniformly drawn actions that there are, int64 `[B]`."""
        device = self.encoder.device
        counts = torch.tensor([len(own) for own in names], device=device)
        there = torch.arange(self.mask_dim, device=device) < counts[:, None]
        there = there if mask is None else there & mask
        check_choice(there)
        return Categorical(mask_logits(torch.zeros(there.shape, device=device), there)).sample()

    def inspect(
        self, x: Stored, state: Tensor | None = None, mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        """`value` `[B]`, if there is a critic."""
        return {} if self.critic is None else {"value": self.value(x)}

    # --- learning -----------------------------------------------------------------------------

    def evaluate(self, batch: TensorDict) -> Evaluation:
        latent = batch["latent"]
        return self._speak(batch["obs"], latent["ids"], latent["length"])

    def rewards(self, steps: TensorDict) -> Tensor:
        reward = steps["reward"]
        if self.on_illegal != "penalize":
            return reward
        return reward + self.illegal_reward * steps["illegal"].to(reward)

    def _speak(self, x: Any, ids: Tensor, length: Tensor) -> Evaluation:
        prompt, prompt_length = self.encoder.prompts(x)
        spoken = speak(self.encoder.backbone, prompt, prompt_length, ids, length, self.temperature)
        log_prob, entropy = spoken.log_prob.sum(-1), spoken.entropy.sum(-1)
        value = torch.zeros_like(log_prob)
        if self.critic is not None:
            value = self.value_of(self.encoder.normalized(spoken.hidden.float()))
        return Evaluation(log_prob, entropy, value)

    # --- what it has to tell ------------------------------------------------------------------

    def begin_rollout(self) -> None:
        self._texts = self._illegal = 0  # evaluation has counted too

    def metrics(self) -> dict[str, float]:
        """`policy/illegal`: the share of texts since the last call that named no action."""
        texts, illegal = self._texts, self._illegal
        self.begin_rollout()
        return {"policy/illegal": illegal / texts} if texts else {}
