"""What is optimised, by what, how fast, and when PPO stops."""

from functools import partial
from itertools import pairwise

import gymnasium as gym
import pytest
import torch
from lightning.pytorch import Callback
from training import AGENTS, fit, make_trainer

from rl_lightning import A2C, DQN, PPO, REINFORCE, ActorCritic, MLPEncoder
from rl_lightning.core.errors import ConfigurationError
from rl_lightning.core.types import EnvSpec
from rl_lightning.data import ReplayDataModule, RolloutDataModule

SPEC = EnvSpec(gym.spaces.Box(-1.0, 1.0, (2,)), gym.spaces.Discrete(2))
EVERYONE = [PPO, A2C, REINFORCE]
encoder = partial(MLPEncoder, hidden=(4,))


def names(agent, group):
    inside = {id(p) for p in group["params"]}
    return {name for name, p in agent.named_parameters() if id(p) in inside}


@pytest.mark.parametrize("make", EVERYONE)
def test_the_optimizer_is_the_one_given(make):
    agent = make(SPEC, optimizer=partial(torch.optim.SGD, lr=0.125, momentum=0.5))
    optimizer = agent.configure_optimizers()
    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.param_groups[0]["lr"] == 0.125
    assert names(agent, optimizer.param_groups[0]) == {n for n, _ in agent.named_parameters()}


def test_default_optimizers():
    kinds = {make: make(SPEC).configure_optimizers() for make in EVERYONE}
    assert isinstance(kinds[PPO], torch.optim.Adam)
    assert kinds[PPO].param_groups[0]["eps"] == 1e-5
    assert isinstance(kinds[A2C], torch.optim.RMSprop)
    assert isinstance(kinds[REINFORCE], torch.optim.Adam)


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("make", EVERYONE)
def test_encoder_lr_is_for_every_encoder_and_nothing_else(make, share):
    agent = make(SPEC, encoder, partial(ActorCritic, share_encoder=share), encoder_lr=0.5)
    rest, own = agent.configure_optimizers().param_groups
    assert own["lr"] == 0.5
    assert rest["lr"] < 0.5
    assert names(agent, own) == {n for n, _ in agent.named_parameters() if "encoder" in n}
    assert len(own["params"]) == (2 if share else 4)
    assert names(agent, rest) | names(agent, own) == {n for n, _ in agent.named_parameters()}


def test_a_rate_for_an_encoder_without_parameters_is_refused():
    with pytest.raises(ConfigurationError, match=r"encoder_lr: 0\.5 means nothing.*MLPEncoder"):
        PPO(SPEC, encoder_lr=0.5).configure_optimizers()


def test_frozen_parameters_are_not_optimised():
    agent = PPO(SPEC, encoder)
    agent.encoder.requires_grad_(False)
    optimizer = agent.configure_optimizers()
    assert not any("encoder" in n for n in names(agent, optimizer.param_groups[0]))


@pytest.mark.parametrize("make", EVERYONE)
@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("encoder_lr", -1.0),
        ("gamma", 1.5),
        ("lr_schedule", "sometimes"),
        ("entropy_coef", -0.1),
        ("value_coef", -0.1),
    ],
)
def test_impossible_arguments_are_refused(make, argument, value):
    with pytest.raises(ValueError, match=f"{argument.removeprefix('lr_')}.*{value}"):
        make(SPEC, **{argument: value})


@pytest.mark.parametrize(
    ("argument", "value"),
    [("gae_lambda", 7.0), ("clip_range", -1.0), ("clip_range_value", -1.0), ("target_kl", -1.0)],
)
def test_impossible_arguments_of_ppo_are_refused(argument, value):
    with pytest.raises(ConfigurationError, match=f"^{argument} must be .*, not {value}"):
        PPO(SPEC, **{argument: value})


@pytest.mark.parametrize("make", [PPO, A2C])
def test_an_actor_critic_without_critic_is_refused(make):
    with pytest.raises(ConfigurationError, match=f"{make.__name__} needs a critic"):
        make(SPEC, network=partial(ActorCritic, critic=False))


def test_an_impossible_clip_schedule_is_refused():
    with pytest.raises(ValueError, match="schedule must be"):
        PPO(SPEC, clip_schedule="sometimes")  # type: ignore[arg-type]


class Rates(Callback):
    """Notes the learning rates of each update, and counts updates and validations."""

    def __init__(self):
        self.rates, self.updates, self.validations = [], 0, []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.updates += 1
        self.rates.append([group["lr"] for group in optimizer.param_groups])

    def on_validation_end(self, trainer, pl_module):
        self.validations.append(self.updates)


def train(name, data=None, trainer=None, **kwargs):
    data = {
        "env": "Probe-v0",
        "env_kwargs": {"task": "policy"},
        "num_envs": 4,
        "rollout_steps": 4,
        "total_frames": 64,
        "val_episodes": 2,
        **(data or {}),
    }
    module, rates = RolloutDataModule(**data), Rates()
    fit(AGENTS[name](module.spec, **kwargs), module, callbacks=[rates], **(trainer or {}))
    return rates


@pytest.mark.parametrize("name", AGENTS)
def test_lr_schedule_scales_every_group_by_progress(name):
    rates = {
        schedule: train(
            name,
            encoder=encoder,
            encoder_lr=0.5,
            optimizer=partial(torch.optim.SGD, lr=0.125),
            lr_schedule=schedule,
        ).rates
        for schedule in ("constant", "linear")
    }
    assert rates["constant"] == [[0.125, 0.5]] * 4
    rest, own = zip(*rates["linear"], strict=True)
    # Equal steps down over four rollouts, the encoder's in the same proportion.
    steps = {round(a - b, 6) for a, b in pairwise(rest)}
    assert steps == {0.125 / 4}
    assert own == tuple(4 * lr for lr in rest)


UPDATES = {"minibatch_size": 8, "passes": 3, "rollouts_per_epoch": 2}  # 6 for each rollout
fast = partial(torch.optim.Adam, lr=1e-2)


def test_target_kl_skips_the_rest_of_a_rollout_but_not_the_next():
    assert train("ppo", UPDATES, optimizer=fast).updates == 4 * 6
    assert train("ppo", UPDATES, optimizer=fast, target_kl=1e9).updates == 4 * 6
    # The first minibatch's ratio is 1; the second one's is not, and is the last.
    assert train("ppo", UPDATES, optimizer=fast, target_kl=1e-8).updates == 4 * 2


def test_target_kl_still_validates_at_the_end_of_every_epoch():
    rates = train("ppo", UPDATES, {"limit_val_batches": 1.0}, optimizer=fast, target_kl=1e-8)
    assert rates.validations == [4, 8]


def test_a_still_policy_is_never_stopped():
    still = partial(torch.optim.SGD, lr=0.0)
    assert train("ppo", UPDATES, optimizer=still, target_kl=1e-8).updates == 4 * 6


@pytest.mark.parametrize(
    ("make", "missing"),
    [(partial(torch.optim.SGD, lr=0.1), "momentum"), (torch.optim.RMSprop, "alpha")],
)
@pytest.mark.parametrize("kind", [PPO, DQN])
def test_another_optimizer_does_not_go_on_with_the_state(kind, make, missing, tmp_path):
    """Both by default learn by Adam."""
    module, options = {
        PPO: (RolloutDataModule, {"num_envs": 2, "rollout_steps": 16, "minibatch_size": 16}),
        DQN: (ReplayDataModule, {"warmup_frames": 32, "frames_per_epoch": 32, "batch_size": 8}),
    }[kind]
    data = module("CartPole-v1", total_frames=64, val_episodes=2, **options)
    trainer = make_trainer(gradient_clip_val=None)
    trainer.fit(kind(data.spec), data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    more = module("CartPole-v1", total_frames=128, val_episodes=2, **options)
    with pytest.raises(ConfigurationError, match=f"{missing}.*another optimizer .*betas"):
        make_trainer(gradient_clip_val=None).fit(
            kind(data.spec, optimizer=make), more, ckpt_path=tmp_path / "last.ckpt"
        )
