"""A language model that acts: agents that learn by its scores, and what training changes."""

from functools import partial

import pytest
import text_probes  # noqa: F401  (registers the environments)
import torch
from llm_tiny import tiny_model
from training import fit, make_trainer

from rl_lightning import (
    A2C,
    DQN,
    PPO,
    REINFORCE,
    Agent,
    ReplayDataModule,
    RolloutDataModule,
    ScoringPolicy,
    ScoringQNetwork,
    TextActionEncoder,
)
from rl_lightning.exploration import EpsilonGreedy
from rl_lightning.maths import losses

NAMES = ["north", "east"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model("llama", tmp_path_factory.mktemp("llama"), layers=2)


def encoder(model, tune="frozen", **kwargs):
    return partial(TextActionEncoder, model=model, tune=tune, max_length=40, **kwargs)


def rollouts(env="TextNamed-v0", **kwargs):
    defaults = {"num_envs": 16, "rollout_steps": 4, "minibatch_size": 32, "passes": 2}
    return RolloutDataModule(env, **{**defaults, "seed": 3, **kwargs})


ADAM = partial(torch.optim.Adam, lr=1e-2)


@pytest.fixture
def ratios(monkeypatch):
    """|ρ − 1| of each update's rows."""
    seen = []
    original = losses.ppo_policy_loss

    def spy(log_ratio, *args, **kwargs):
        seen.append((log_ratio.detach().exp() - 1).abs().max())
        return original(log_ratio, *args, **kwargs)

    monkeypatch.setattr(losses, "ppo_policy_loss", spy)
    # A frozen model's log π is recalled by the function that the loss uses; here acting notes it.
    build = ScoringPolicy.__init__

    def noting(self, *args, **kwargs):
        build(self, *args, **kwargs)
        self.evaluates_while_acting = True

    monkeypatch.setattr(ScoringPolicy, "__init__", noting)
    return seen


@pytest.mark.parametrize(
    ("tune", "more"),
    [("frozen", {}), ("lora", {}), ("full", {}), ("full", {"gradient_checkpointing": True})],
)
@pytest.mark.parametrize("env", ["TextNamed-v0", "TextListed-v0"])
def test_the_first_ratio_is_one(model, ratios, tune, more, env):
    torch.manual_seed(0)
    own = {"actions": NAMES} if env == "TextNamed-v0" else {}
    data = rollouts(env, total_frames=64)
    agent = PPO(data.spec, encoder(model, tune, **own, **more), ScoringPolicy, optimizer=ADAM)
    fit(agent, data)
    assert len(ratios) == 4
    assert ratios[0] < 1e-5
    assert ratios[-1] > 1e-3  # and then it learns


def test_the_first_ratio_is_one_to_rounding_in_bfloat16(model, ratios):
    torch.manual_seed(0)
    data = rollouts(total_frames=64)
    agent = PPO(data.spec, encoder(model, "lora", actions=NAMES), ScoringPolicy, optimizer=ADAM)
    fit(agent, data, precision="bf16-mixed")
    assert ratios[0] < 0.05


@pytest.mark.learning
@pytest.mark.parametrize(
    ("agent", "tune"),
    [
        (PPO, "frozen"),
        (PPO, "full"),
        (A2C, "frozen"),
        (REINFORCE, "full"),
        *(pytest.param(agent, "lora", marks=pytest.mark.slow) for agent in (PPO, A2C, REINFORCE)),
        pytest.param(A2C, "full", marks=pytest.mark.slow),
        pytest.param(REINFORCE, "frozen", marks=pytest.mark.slow),
    ],
)
def test_it_learns_to_read(model, agent, tune):
    torch.manual_seed(0)
    one = {} if agent is PPO else {"passes": 1, "minibatch_size": None, "rollout_steps": 8}
    data = rollouts(total_frames=64 * 40, **one)
    made = agent(
        data.spec,
        encoder(model, tune, actions=NAMES),
        ScoringPolicy,
        optimizer=partial(torch.optim.Adam, lr=1e-2 if tune != "full" else 1e-3),
        gamma=0.5,
    )
    fit(made, data)
    walls = ["There is a wall to the north.", "There is a wall to the east."]
    assert made.predict(walls).tolist() == [1, 0]


@pytest.mark.slow
@pytest.mark.learning
def test_it_learns_to_choose_among_actions_that_are_new_in_every_state(model):
    torch.manual_seed(0)
    data = rollouts("TextListed-v0", total_frames=8192, num_envs=32, rollout_steps=8,
                    minibatch_size=64, val_episodes=32)  # fmt: skip
    agent = PPO(
        data.spec,
        encoder(model, "full"),
        ScoringPolicy,
        optimizer=partial(torch.optim.Adam, lr=1e-3),
        gamma=0.5,
    )
    fit(agent, data)
    trainer = make_trainer(limit_val_batches=1.0)
    (result,) = trainer.validate(agent, data, verbose=False)
    assert result["val/return"] > 2.0  # of 3; at random 0.9


@pytest.mark.learning
@pytest.mark.parametrize("tune", ["frozen", pytest.param("full", marks=pytest.mark.slow)])
def test_q_values_are_learned(model, tune):
    torch.manual_seed(0)
    data = ReplayDataModule("TextNamed-v0", 4, warmup_frames=64, batch_size=32, seed=3,
                            total_frames=700, frames_per_epoch=100)  # fmt: skip
    agent = DQN(
        data.spec,
        encoder(model, tune, actions=NAMES),
        ScoringQNetwork,
        optimizer=partial(torch.optim.Adam, lr=1e-2 if tune == "frozen" else 3e-3),
        gamma=0.0,
        target_update_frames=50,
        exploration=partial(EpsilonGreedy, fraction=0.5),
    )
    fit(agent, data)
    walls = ["There is a wall to the north.", "There is a wall to the east."]
    assert agent.predict(walls).tolist() == [1, 0]
    q = agent.inspect(agent.preprocess(walls))["values"]
    torch.testing.assert_close(q, torch.tensor([[0.0, 1.0], [1.0, 0.0]]), atol=0.35, rtol=0)


def test_replay_offers_only_what_there_is(model):
    torch.manual_seed(0)
    data = ReplayDataModule("TextListed-v0", 4, warmup_frames=16, batch_size=8, seed=3,
                            total_frames=64, frames_per_epoch=32)  # fmt: skip
    agent = DQN(data.spec, encoder(model, "lora"), ScoringQNetwork, optimizer=ADAM)
    fit(agent, data)  # the environment itself refuses what it did not offer


@pytest.mark.parametrize("tune", ["frozen", "lora", "full"])
def test_what_training_changes(model, tune):
    torch.manual_seed(0)
    data = rollouts(total_frames=64)
    agent = PPO(data.spec, encoder(model, tune, actions=NAMES), ScoringPolicy, optimizer=ADAM)
    before = {name: p.detach().clone() for name, p in agent.named_parameters()}
    fit(agent, data)
    moved = {name for name, p in agent.named_parameters() if not torch.equal(p, before[name])}
    inside = {name for name in moved if ".backbone." in name}
    assert {"policy.critic.0.weight"} <= moved
    if tune == "frozen":
        assert not inside
        assert "policy.scores.query.weight" in moved
    elif tune == "lora":
        assert inside
        assert all("lora_" in name for name in inside)
    else:
        assert any("embed_tokens" in name for name in inside)


def test_the_critic_may_leave_the_model_alone(model):
    for detach in (False, True):
        torch.manual_seed(0)
        data = rollouts()
        agent = PPO(
            data.spec,
            encoder(model, "full", actions=NAMES),
            partial(ScoringPolicy, detach_critic=detach),
        )
        x = agent.preprocess(["There is a wall"])
        agent.policy.value(x).sum().backward()
        grads = [p.grad for p in agent.encoder.parameters() if p.grad is not None]
        assert bool(grads) is not detach


@pytest.mark.parametrize("tune", ["frozen", "lora"])
@pytest.mark.parametrize("env", ["TextNamed-v0", "TextListed-v0"])
def test_a_resumed_run_is_the_uninterrupted_one(model, tune, env, tmp_path):
    def run(frames, ckpt_path=None):
        torch.manual_seed(0)
        own = {"actions": NAMES} if env == "TextNamed-v0" else {}
        data = rollouts(env, total_frames=frames)
        agent = PPO(data.spec, encoder(model, tune, **own), ScoringPolicy, optimizer=ADAM)
        trainer = make_trainer()
        trainer.fit(agent, data, ckpt_path=ckpt_path)
        return agent, trainer

    whole, _ = run(256)
    _, trainer = run(128)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    resumed, _ = run(256, tmp_path / "half.ckpt")
    for name, value in whole.state_dict().items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, resumed.state_dict()[name]), name


@pytest.mark.parametrize("tune", ["frozen", "lora", "full"])
def test_a_checkpoint_knows_its_agent(model, tune, tmp_path):
    torch.manual_seed(0)
    data = rollouts(total_frames=64)
    agent = PPO(data.spec, encoder(model, tune, actions=NAMES), ScoringPolicy, optimizer=ADAM)
    trainer = make_trainer()
    trainer.fit(agent, data)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    loaded = Agent.load_from_checkpoint(tmp_path / "a.ckpt")
    texts = ["There is a wall to the north.", "pick up the green key"]
    with torch.no_grad():
        a, b = (one.inspect(one.preprocess(texts)) for one in (agent.eval(), loaded.eval()))
    for name in a:
        torch.testing.assert_close(a[name], b[name])


def test_reinforce_needs_no_critic(model):
    data = rollouts(total_frames=64, passes=1, minibatch_size=None)
    agent = REINFORCE(
        data.spec, encoder(model, actions=NAMES), ScoringPolicy, baseline=False, optimizer=ADAM
    )
    assert agent.policy.critic is None
    fit(agent, data)
