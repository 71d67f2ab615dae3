"""A copy of an agent acts as the agent does, and belongs to no run."""

import copy
import gc
import io
import pickle
import types
import weakref
from functools import partial

import gymnasium as gym
import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging
from llm_tiny import tiny_model
from probes import batch
from recorded import demonstrate, offline, record
from training import make_trainer

from rl_lightning import (
    A2C,
    BC,
    DDPG,
    DQN,
    IQL,
    PPO,
    REINFORCE,
    SAC,
    TD3,
    ActorCritic,
    DictEncoder,
    DiscreteSAC,
    LLMEncoder,
    MLPEncoder,
    QNetwork,
    QTable,
    ReplayDataModule,
    RolloutDataModule,
)
from rl_lightning.core.errors import ConfigurationError
from rl_lightning.data.replay.buffer import ReplayBuffer
from rl_lightning.exploration import OrnsteinUhlenbeck

pytestmark = pytest.mark.filterwarnings("ignore")

normal = partial(MLPEncoder, normalize=True, hidden=(4,))
small = partial(ActorCritic, hidden=(4,))
memory = partial(small, recurrent="lstm", recurrent_size=3, share_encoder=False)


def rollouts(agent, observation="vector", action="discrete", **kwargs):
    data = RolloutDataModule(
        "Probe-v0",
        env_kwargs={"task": "policy", "observation": observation, "action": action},
        **{"num_envs": 4, "rollout_steps": 4, "total_frames": 32, "val_episodes": 2, "seed": 0}
        | kwargs,
    )
    return agent(data.spec), data


def replay(agent, observation="vector", action="discrete", **kwargs):
    data = ReplayDataModule(
        "Probe-v0",
        env_kwargs={"task": "policy", "observation": observation, "action": action},
        **{"total_frames": 24, "warmup_frames": 16, "frames_per_epoch": 4, "batch_size": 4}
        | {"val_episodes": 2, "seed": 0, "buffer_frames": 5_000, **kwargs},
    )
    return agent(data.spec), data


def recordings(agent, folder):
    path = record(folder / "data.hdf5", choose=demonstrate, episodes=16)
    data = offline(path, total_updates=4, updates_per_epoch=2, val_episodes=2)
    return agent(data.spec), data


def text(tune, folder):
    return partial(LLMEncoder, model=tiny_model("bert", folder, layers=1, hidden=16), tune=tune)


CASES = {
    "ppo": lambda _: rollouts(
        partial(PPO, encoder=normal, network=small), passes=2, minibatch_size=8
    ),
    "a2c_normalised_rewards": lambda _: rollouts(
        partial(A2C, network=small), action="box", normalize_reward=True
    ),
    "reinforce": lambda _: rollouts(
        partial(REINFORCE, baseline=False, encoder=DictEncoder, network=small), "tuple"
    ),
    "ppo_recurrent": lambda _: rollouts(partial(PPO, encoder=normal, network=memory)),
    "ppo_frozen_text": lambda f: rollouts(partial(PPO, encoder=text("frozen", f)), "text"),
    "ppo_lora_in_a_dict": lambda f: rollouts(
        partial(PPO, encoder=partial(DictEncoder, encoders={"text": text("lora", f)})), "mixed"
    ),
    "ppo_native": lambda _: rollouts(partial(PPO, network=small), vectorization="native"),
    "q_table": lambda _: rollouts(QTable, "text"),
    "q_table_from_replay": lambda _: replay(partial(QTable, method="double_q"), "discrete"),
    "dqn": lambda _: replay(partial(DQN, encoder=normal), prioritized=True),
    "dqn_noisy": lambda _: replay(
        partial(DQN, exploration=None, network=partial(QNetwork, noisy=True)), storage="disk"
    ),
    "dqn_frozen_text": lambda f: replay(partial(DQN, encoder=text("frozen", f)), "text"),
    "discrete_sac": lambda _: replay(DiscreteSAC),
    "ddpg_with_memory": lambda _: replay(partial(DDPG, noise=OrnsteinUhlenbeck), action="box"),
    "td3": lambda _: replay(partial(TD3, encoder=normal), action="box"),
    "sac": lambda _: replay(SAC, action="box"),
    "bc": lambda f: recordings(partial(BC, network=small), f),
    "iql": lambda f: recordings(IQL, f),
}


def saved(agent):
    file = io.BytesIO()
    torch.save(agent, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda agent: pickle.loads(pickle.dumps(agent)),
    "torch.save": saved,
}


@torch.no_grad()
def behaviour(agent, observation):
    """What it has and does: weights, and actions, greedy and sampled, and the memory after."""
    training, noise = agent.training, torch.get_rng_state()
    agent.eval()
    out = dict(agent.state_dict())
    x = agent.preprocess(batch(observation, 0, 1, 2, 1))
    out["thoughts"] = agent.inspect(x, agent.initial_state(4))
    for explore in (False, True):
        torch.manual_seed(0)
        out[explore] = agent.act(x, explore, agent.initial_state(4))
    agent.train(training)
    torch.set_rng_state(noise)
    out["clock"] = (agent.frames, agent.progress)
    return copy.deepcopy(out)


def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


FOREIGN = (
    L.Trainer,
    L.LightningDataModule,
    gym.Env,
    gym.vector.VectorEnv,
    ReplayBuffer,
    io.IOBase,
    types.GeneratorType,
)


def held(thing):
    """Everything that an object keeps alive, but for modules, classes and global variables."""
    seen, left = {}, [thing]
    while left:
        here = left.pop()
        if id(here) in seen or isinstance(here, types.ModuleType | type):
            continue
        seen[id(here)] = here
        if isinstance(here, types.FunctionType):
            left += [here.__closure__, here.__defaults__]
        else:
            left += gc.get_referents(here)
    return list(seen.values())


def foreign(things):
    return [type(thing).__name__ for thing in things if isinstance(thing, FOREIGN)]


class Copier(L.Callback):
    """Copies the agent in the middle of things."""

    def __init__(self, kinds, observation):
        self.kinds, self.observation, self.made = kinds, observation, {}

    def copies(self, when, agent):
        if (when, "deepcopy") in self.made:
            return
        expected = behaviour(agent, self.observation)
        for name in self.kinds:
            if name == "torch.save" and when not in ("before", "epoch"):
                continue  # it pickles
            made = COPIES[name](agent)
            assert same(behaviour(made, self.observation), expected), (when, name)
            self.made[when, name] = made, expected

    def on_train_batch_end(self, trainer, agent, *args):
        self.copies("batch", agent)

    def on_validation_batch_end(self, trainer, agent, *args):
        self.copies("evaluating", agent)

    def on_validation_end(self, trainer, agent):
        self.copies("evaluated", agent)

    def on_before_optimizer_step(self, trainer, agent, optimizer):
        self.copies("update", agent)

    def on_train_epoch_end(self, trainer, agent):
        self.copies("epoch", agent)


@pytest.mark.parametrize("name", CASES)
def test_a_copy_acts_the_same_and_holds_nothing_of_the_run(name, tmp_path):
    agent, data = CASES[name](tmp_path)
    observation = data.env_kwargs.get("observation", "vector")
    copier = Copier(COPIES, observation)
    copier.copies("before", agent)
    trainer = make_trainer(callbacks=[copier], limit_val_batches=1.0, gradient_clip_val=None)
    trainer.fit(agent, data)
    copier.copies("after", agent)
    moments = {"before", "batch", "evaluating", "evaluated", "update", "epoch", "after"}
    moments -= {"update"} if isinstance(agent, QTable) else set()  # nothing is optimised
    assert {when for when, _ in copier.made} == moments
    assert {kind for _, kind in copier.made} == COPIES.keys()
    for (when, kind), (made, expected) in copier.made.items():  # training went on without them
        assert same(behaviour(made, observation), expected), (when, kind)
        with pytest.raises(RuntimeError, match="not attached"):
            _ = made.trainer
        assert made.configure_optimizers() is not None
    reachable = held([made for made, _ in copier.made.values()])
    assert not foreign(reachable)
    assert not any(thing is agent for thing in reachable)
    reference = weakref.ref(data), weakref.ref(trainer)
    del data, trainer, copier, made
    gc.collect()
    assert [r() for r in reference] == [None, None]
    assert not foreign(held(agent))


def test_a_copy_can_be_trained_wherever_it_was_made(tmp_path):
    """`validate` runs in inference mode, whose tensors cannot be trained."""
    agent, data = CASES["ppo"](tmp_path)
    copier = Copier(COPIES, "vector")
    trainer = make_trainer(callbacks=[copier], limit_val_batches=1.0)
    trainer.validate(agent, data, verbose=False)
    for kind in ("deepcopy", "pickle"):
        made, before = copier.made["evaluated", kind]
        fresh = RolloutDataModule("Probe-v0", num_envs=4, rollout_steps=4, total_frames=200)
        make_trainer(gradient_clip_val=None).fit(made, fresh)
        weight = "policy.action_head.linear.weight"
        assert not torch.equal(made.state_dict()[weight], before[weight])


def act_elsewhere(agents, queue):
    with torch.no_grad():
        queue.put([agent.act(agent.preprocess(x), False)["action"].tolist() for agent, x in agents])


@pytest.mark.distributed
def test_another_process_gets_agents_that_act_the_same(tmp_path):
    agents = []
    for name, observation in {"ppo": "vector", "dqn": "vector", "q_table": "text"}.items():
        agent, data = CASES[name](tmp_path)
        make_trainer(gradient_clip_val=None).fit(agent, data)
        agents.append((agent.eval(), batch(observation, 0, 1, 2)))
    here, context = torch.multiprocessing.SimpleQueue(), torch.multiprocessing.get_context("spawn")
    act_elsewhere(agents, here)
    queue = context.SimpleQueue()
    process = context.Process(target=act_elsewhere, args=(agents, queue))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    assert queue.get() == here.get()


def test_an_optimizer_that_a_local_function_builds_stays_behind_when_pickling(tmp_path):
    build = lambda groups: torch.optim.SGD(groups, lr=0.1)  # noqa: E731
    agent, _ = rollouts(partial(PPO, optimizer=build))
    for name, make in COPIES.items():
        made = make(agent)
        assert same(behaviour(made, "vector"), behaviour(agent, "vector"))
        if name == "deepcopy":
            assert made.configure_optimizers().defaults["lr"] == 0.1
            continue
        with pytest.raises(ConfigurationError, match="optimizer was a function that pickle"):
            made.configure_optimizers()
        made.optimizer = build
        assert made.configure_optimizers().defaults["lr"] == 0.1


@pytest.mark.parametrize("average", [StochasticWeightAveraging(0.1), EMAWeightAveraging()])
def test_callbacks_that_copy_agents_can(average, tmp_path):
    """They copy it when training begins, with whatever it holds then."""
    agent, data = CASES["ppo"](tmp_path)
    if isinstance(average, StochasticWeightAveraging):
        average._swa_lrs = [0.1]
    make_trainer(callbacks=[average], max_epochs=2).fit(agent, data)
    assert copy.deepcopy(average._average_model) is not None


@pytest.mark.parametrize("kind", COPIES)
def test_a_loaded_agent_can_be_copied(kind, tmp_path):
    """Its optimizer, encoder and network were built by jsonargparse."""
    agent, data = CASES["ppo"](tmp_path)
    trainer = make_trainer()
    trainer.fit(agent, data)
    trainer.save_checkpoint(tmp_path / "agent.ckpt")
    loaded = PPO.load_from_checkpoint(tmp_path / "agent.ckpt")
    made = COPIES[kind](loaded)
    assert same(behaviour(made, "vector"), behaviour(agent, "vector"))
    assert made.configure_optimizers().defaults["lr"] == 3e-4
    assert made.hparams == loaded.hparams


def test_an_agent_does_not_keep_alive_what_trained_it(tmp_path):
    """Neither after a run nor after one that failed."""
    for name in ("ppo", "dqn", "bc"):
        for fails in (False, True):
            agent, data = CASES[name](tmp_path)
            trainer = make_trainer(gradient_clip_val=None)
            if fails:
                agent.on_train_epoch_end = lambda: 1 / 0
                with pytest.raises(ZeroDivisionError):
                    trainer.fit(agent, data)
                del agent.on_train_epoch_end
            else:
                trainer.fit(agent, data)
            assert agent.trainer is trainer
            step = agent.global_step
            held_by_agent = held(agent)
            assert not foreign(held_by_agent), (name, fails)
            buffer = weakref.ref(getattr(data, "buffer", None) or data)
            del data, trainer, held_by_agent
            gc.collect()
            assert buffer() is None
            if not fails:  # where it stopped is known
                assert agent.trainer.global_step == agent.global_step == step
                with pytest.raises(RuntimeError, match="gone, and its datamodule with it"):
                    _ = agent.trainer.datamodule


@pytest.mark.parametrize("name", ["ppo", "dqn", "bc"])
def test_a_trainer_still_has_its_agent_after_the_run(name, tmp_path):
    agent, data = CASES[name](tmp_path)
    trainer = make_trainer(gradient_clip_val=None, limit_val_batches=1.0)
    trainer.fit(agent, data)
    assert agent.trainer is trainer
    assert agent.global_step == trainer.global_step > 0
    trainer.save_checkpoint(tmp_path / "agent.ckpt")
    assert trainer.validate(agent, data, verbose=False)
