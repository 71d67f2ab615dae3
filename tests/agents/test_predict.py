"""`agent.predict`: observations as environments give them, actions as they take them."""

from functools import partial

import gymnasium as gym
import lightning as L
import numpy as np
import pytest
import torch
from llm_tiny import tiny_model
from probes import ACTIONS, MASKS, OBSERVATIONS, PRINTABLE, batch, show
from training import make_trainer

from rl_lightning import (
    DDPG,
    DQN,
    PPO,
    SAC,
    TD3,
    ActorCritic,
    DictEncoder,
    DiscreteSAC,
    EnvSpec,
    ImpalaCNN,
    LLMEncoder,
    MLPEncoder,
    QTable,
    RolloutDataModule,
    TableEncoder,
)
from rl_lightning.core.errors import ConfigurationError
from rl_lightning.core.spaces import as_batch
from rl_lightning.exploration import OrnsteinUhlenbeck

small = partial(ActorCritic, hidden=(4,))
cnn = partial(ImpalaCNN, features=4, channels=(2,))
ENCODERS = {
    "vector": MLPEncoder,
    "discrete": MLPEncoder,
    "small_image": cnn,
    "text": TableEncoder,
    "dict": partial(DictEncoder, encoders={"image": cnn}),
    "mixed": partial(DictEncoder, encoders={"text": partial(TableEncoder, capacity=9)}),
    "tuple": DictEncoder,
}


def ppo(observation="vector", action="discrete", **kwargs):
    space = ACTIONS[action] if isinstance(action, str) else action
    spec = EnvSpec(OBSERVATIONS[observation], space, "Probe-v0")
    agent = PPO(spec, **{"encoder": ENCODERS[observation], "network": small, **kwargs})
    with torch.no_grad():
        agent.policy.action_head.linear.weight.normal_()
    return agent


@pytest.mark.parametrize("observation", ENCODERS)
def test_one_observation_or_a_batch_whatever_the_space(observation):
    agent = ppo(observation)
    actions = agent.predict(batch(observation, 0, 1, 2))
    assert isinstance(actions, np.ndarray)
    assert actions.shape == (3,)
    one = [agent.predict(show(observation, state)) for state in (0, 1, 2)]
    assert all(agent.spec.action_space.contains(action) for action in one)
    assert one == actions.tolist()


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_no_action_comes_of_an_observation_that_is_no_number(wrong):
    bad = np.array([[0.0, 0.0], [0.0, wrong]])
    with pytest.raises(ConfigurationError, match=r"^obs: .* holds NaN or infinity"):
        ppo().predict(bad)
    with pytest.raises(ConfigurationError, match=r"^obs: .* holds NaN or infinity"):
        ppo().predict(bad[1])
    spec = EnvSpec(gym.spaces.Dict(a=OBSERVATIONS["vector"], b=OBSERVATIONS["vector"]), WIDE)
    agent = PPO(spec, encoder=partial(DictEncoder, ignore=["b"]), network=small)
    assert WIDE.contains(agent.predict({"a": np.zeros(2), "b": bad[1]}))  # nobody looks there


WIDE = gym.spaces.Box(np.array([[-0.1, 0.3]]), np.array([[0.1, 0.7]]), dtype=np.float64)
SPACES = {**ACTIONS, "start": gym.spaces.Discrete(2, start=5), "float64": WIDE}
SPACES["int32"] = gym.spaces.MultiDiscrete([2, 3], dtype=np.int32, start=[1, -1])


@pytest.mark.parametrize("action", SPACES)
def test_actions_are_in_their_space(action):
    """In dtype, shape and, to the last bit, bounds."""
    space = SPACES[action]
    agent = ppo(action=space, network=partial(small, log_std_init=2.0))
    for explore in (False, True):
        one = agent.predict(np.zeros(2), explore=explore)
        assert space.contains(one)
        many = agent.predict(np.zeros((50, 2)), explore=explore)
        assert many.dtype == space.dtype
        batched = gym.vector.utils.batch_space(space, 50)
        assert many.shape == batched.shape
        assert all(space.contains(np.asarray(row, space.dtype)) for row in many)


@pytest.mark.parametrize("make", [DDPG, TD3, SAC])
def test_continuous_actions_are_in_their_space(make):
    agent = make(EnvSpec(OBSERVATIONS["vector"], WIDE))
    with torch.no_grad():
        for parameter in agent.policy.actor.parameters():
            parameter.mul_(1e3)
    for explore in (False, True):
        actions, _ = agent.predict(np.ones((50, 2)), state=None, explore=explore)
        assert actions.dtype == np.float64
        assert actions.shape == (50, 1, 2)
        assert all(WIDE.contains(action) for action in actions)
    assert WIDE.contains(agent.predict([0.5, -1.0]))


@pytest.mark.parametrize("make", [DQN, DiscreteSAC, QTable])
def test_a_discrete_action_is_a_number(make):
    """That a table of transitions can be asked for, which a 0-d array cannot."""
    spec = EnvSpec(OBSERVATIONS["discrete"], SPACES["start"])
    action = make(spec).predict(2)
    assert action in {5: "left", 6: "right"}
    assert spec.action_space.contains(action)


WRONG = [
    ("vector", np.zeros(3), r"\[3\].*shape \[2\], or \[N, 2\]"),
    ("vector", np.zeros((2, 3)), r"\[2, 3\].*shape \[2\], or \[N, 2\]"),
    ("vector", np.zeros((1, 1, 2)), r"\[1, 1, 2\]"),
    ("vector", np.zeros((0, 2)), r"\[0, 2\]"),
    ("vector", 1.0, r"\[\].*shape \[2\]"),
    ("vector", [[0.0, 1.0], [2.0]], "a list of 2.*shape"),
    ("vector", None, "a NoneType|an array"),
    ("vector", "left", r"shape \[2\]"),
    ("discrete", 0, r"obs: 0 is not in Discrete\(3, start=1\)"),
    ("discrete", 1.5, "1.5 is not in"),
    ("discrete", float("nan"), "nan is not in"),
    ("discrete", [[1]], r"\[1, 1\].*shape \[\], or \[N\]"),
    ("small_image", np.full((8, 8, 3), 0.5), "from 0.5 to 0.5 is not in a Box of uint8.*unscaled"),
    ("small_image", np.zeros((3, 8, 8), np.uint8), r"\[3, 8, 8\].*\[8, 8, 3\]"),
    ("text", 3, "a int .*one text"),
    ("text", [], "a list of 0 .*one text"),
    ("text", ["a", 3], "one text"),
    ("dict", {"vector": np.zeros(2)}, "entries 'vector'.*'image', 'vector'"),
    ("dict", show("dict", 0) | {"vector": np.zeros(3)}, r"obs\['vector'\].*\[3\]"),
    ("dict", show("dict", 0) | {"vector": np.zeros((4, 2))}, "one, a batch of 4"),
    ("dict", np.zeros(2), "a dict with the entries"),
    ("tuple", (1,), "a tuple of 2 entries"),
    ("tuple", (1, np.zeros(5)), r"obs\[1\].*\[5\].*shape \[2\]"),
    ("tuple", (7, np.zeros(2)), r"obs\[0\]: 7 is not in Discrete\(3\)"),
]


@pytest.mark.parametrize(("observation", "obs", "said"), WRONG)
def test_what_is_no_observation_gets_a_sentence(observation, obs, said):
    with pytest.raises(ConfigurationError, match=said) as error:
        ppo(observation).predict(obs)
    assert len(str(error.value)) < 400


class Parity(gym.Space):
    """Even numbers: no space of Gymnasium's."""

    def contains(self, x):
        return isinstance(x, int) and x % 2 == 0


def test_spaces_of_strangers_are_batched_as_vector_environments_do():
    assert as_batch(Parity(), 2) == ((2,), None)
    assert as_batch(Parity(), [2, 4]) == ((2, 4), 2)
    with pytest.raises(ConfigurationError, match="an element of"):
        as_batch(Parity(), 3)


@pytest.mark.parametrize("action", MASKS)
def test_masks_are_kept_to(action):
    agent, space = ppo(action=action), ACTIONS[action]
    for mask in MASKS[action]:
        for _ in range(5):
            one = agent.predict(np.zeros(2), mask=np.array(mask, np.int8), explore=True)
            many = agent.predict(np.zeros((3, 2)), mask=[mask] * 3, explore=True)
            for taken in (one, *many):
                if action == "discrete":
                    assert mask[taken]
                elif action == "multi_discrete":
                    assert mask[taken[0]]
                    assert mask[2 + taken[1]]
                else:
                    assert (taken <= mask).all()
            assert space.contains(taken)
    if action == "multi_discrete":  # as Gymnasium spells it
        parts = (np.array([0, 1]), np.array([0, 1, 0]))
        assert agent.predict(np.zeros(2), mask=parts).tolist() == [1, 1]
    for wrong in ([1], 1, [MASKS[action][0]] * 2):
        with pytest.raises(ConfigurationError, match="mask: "):
            agent.predict(np.zeros(2), mask=wrong)
    with pytest.raises(ConfigurationError, match=r"mask: .*takes no masks"):
        ppo(action="box").predict(np.zeros(2), mask=[1])


def test_memory_is_kept_by_the_caller():
    agent = ppo(network=partial(small, recurrent="gru", recurrent_size=3))
    with pytest.raises(ConfigurationError, match=r"predict\(obs, state=None\)"):
        agent.predict(np.zeros(2))
    with torch.no_grad():
        x = agent.preprocess(np.zeros((1, 2)))
        first = agent.act(x, False, agent.initial_state(1))
        second = agent.act(x, False, first["next_state"])
    action, state = agent.predict(np.zeros(2), state=None)
    assert action == first["action"][0]
    assert torch.equal(state, first["next_state"])
    action, state = agent.predict(np.zeros(2), state=state)
    assert torch.equal(state, second["next_state"])
    assert not state.requires_grad
    _, many = agent.predict(np.zeros((4, 2)), state=None)
    assert many.shape == (4, 3)
    with pytest.raises(ConfigurationError, match=r"shape \[4, 3\].*of shape \[1, 3\]"):
        agent.predict(np.zeros(2), state=many)
    # The same loop for an agent without memory.
    action, state = ppo().predict(np.zeros(2), state=None)
    assert isinstance(action, np.int64)
    assert state is None
    with pytest.raises(ConfigurationError, match=r"it must be None$"):
        ppo().predict(np.zeros(2), state=many)


def test_noise_with_memory_is_asked_for_only_when_exploring():
    agent = DDPG(EnvSpec(OBSERVATIONS["vector"], ACTIONS["box"]), noise=OrnsteinUhlenbeck)
    agent.predict(np.zeros(2))
    with pytest.raises(ConfigurationError, match="remembers earlier steps"):
        agent.predict(np.zeros(2), explore=True)
    _, state = agent.predict(np.zeros(2), state=None, explore=True)
    assert state.abs().sum() > 0


def test_exploring_draws_from_the_policy():
    agent = ppo()
    with torch.no_grad():
        agent.policy.action_head.linear.weight.zero_()
    assert set(agent.predict(np.zeros((50, 2)), explore=True)) == {0, 1}
    assert len(set(agent.predict(np.zeros((50, 2))))) == 1


def test_nothing_is_left_behind(tmp_path):
    """Neither modes, one by one, nor gradients, statistics or random numbers."""
    model = tiny_model("bert", tmp_path / "bert", layers=1, hidden=16)
    text = partial(LLMEncoder, model=model, tune="lora")
    agent = ppo("mixed", encoder=partial(DictEncoder, default=partial(MLPEncoder, normalize=True),
                                         encoders={"text": text}))  # fmt: skip
    agent.train()
    agent.policy.critic.eval()
    modes = [module.training for module in agent.modules()]
    state = {k: v.clone() for k, v in agent.state_dict().items() if isinstance(v, torch.Tensor)}
    noise = torch.get_rng_state()
    agent.predict(show("mixed", 1))
    with pytest.raises(ConfigurationError):
        agent.predict(show("mixed", 1), mask=[1, 2, 3])
    assert [module.training for module in agent.modules()] == modes
    assert all(torch.equal(agent.state_dict()[key], value) for key, value in state.items())
    assert torch.equal(torch.get_rng_state(), noise)
    assert torch.is_grad_enabled()


def test_it_acts_in_eval_mode():
    class Dropping(ActorCritic):
        def __init__(self, *args):
            super().__init__(*args, hidden=(4,))
            self.actor.append(torch.nn.Dropout(0.5))

    agent = ppo(network=Dropping, action="box").train()
    assert len({float(agent.predict(np.ones(2))[0]) for _ in range(8)}) == 1


class Asker(L.Callback):
    """Asks for actions in the middle of things."""

    def __init__(self):
        self.asked = set()

    def ask(self, where, agent):
        self.asked.add(where)
        assert agent.predict(np.zeros(2)) in (0, 1)

    def on_fit_start(self, trainer, agent):
        self.ask("start", agent)

    def on_train_batch_end(self, trainer, agent, *args):
        self.ask("batch", agent)

    def on_validation_end(self, trainer, agent):
        self.ask("validation", agent)


def test_training_goes_on_as_if_nobody_had_asked():
    states = []
    for callbacks in ([], [Asker()]):
        data = RolloutDataModule(
            "Probe-v0", num_envs=4, rollout_steps=4, total_frames=48, passes=2, seed=0
        )
        torch.manual_seed(0)
        agent = PPO(data.spec, encoder=partial(MLPEncoder, normalize=True), network=small)
        make_trainer(callbacks=callbacks, limit_val_batches=1.0).fit(agent, data)
        states.append(agent.state_dict())
        assert agent.predict(np.zeros(2)) in (0, 1)
    assert callbacks[0].asked == {"start", "batch", "validation"}
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_the_printable_text_of_an_environment_may_be_numpys():
    space = gym.spaces.Text(9, charset=PRINTABLE)
    assert as_batch(space, np.array(["a", "b"])) == (("a", "b"), 2)
    assert as_batch(space, np.str_("a")) == (("a",), None)
