"""However an agent is compiled, its checkpoints are those of an agent that is not.

Names depend on what is wrapped, not on what compilers make of it: most tests wrap, and run as ever.
"""

import copy
import logging
from functools import partial

import pytest
import torch
from llm_tiny import tiny_model
from probes import OBSERVATIONS, batch
from training import make_trainer

from rl_lightning import (
    DQN,
    IQL,
    PPO,
    SAC,
    EnvSpec,
    LLMEncoder,
    MLPEncoder,
    QNetwork,
    QTable,
    ReplayDataModule,
    RolloutDataModule,
)
from rl_lightning.nn import make_target
from rl_lightning.nn.target import TargetUpdate

pytestmark = pytest.mark.filterwarnings("ignore")
compiled = partial(torch.compile, backend="eager")
normal = partial(MLPEncoder, normalize=True, hidden=(4,))


@pytest.fixture(autouse=True)
def _nothing_is_compiled():
    logging.getLogger("torch.__trace").setLevel(logging.ERROR)  # megabytes, which pytest would keep
    with torch.compiler.set_stance("force_eager"):
        yield


def policy(agent):
    agent.policy = compiled(agent.policy)


def policy_in_place(agent):
    agent.policy.compile(backend="eager")


def agent_in_place(agent):
    agent.compile(backend="eager")


def encoder(agent):
    agent.policy.encoder = compiled(agent.policy.encoder)


def head(agent):
    name = "advantage" if isinstance(agent, DQN) else "actor"
    setattr(agent.policy, name, compiled(getattr(agent.policy, name)))


def encoder_and_policy(agent):
    encoder(agent)
    policy(agent)


def target(agent):
    policy(agent)
    agent.target = compiled(agent.target)


def backbone(agent):
    agent.policy.encoder.backbone = compiled(agent.policy.encoder.backbone)


def language_model(agent):
    agent.policy.encoder.backbone.model = compiled(agent.policy.encoder.backbone.model)


SPELLINGS = (policy, policy_in_place, agent_in_place, encoder, head, encoder_and_policy)
CASES = [
    *[("ppo", spelling) for spelling in SPELLINGS],
    *[("dqn", spelling) for spelling in (policy, head, target)],
    *[("sac", spelling) for spelling in (policy, encoder)],
    ("iql", policy),
    *[("lora", spelling) for spelling in (policy, encoder, backbone, language_model)],
    ("frozen", language_model),
]


def make(name, folder, seed=0):
    torch.manual_seed(seed)
    action = "box" if name == "sac" else "discrete"
    text = name in ("lora", "frozen")
    kwargs = {"task": "match", "observation": "text" if text else "vector", "action": action}
    spec = RolloutDataModule("Probe-v0", env_kwargs=kwargs).spec
    if text:
        model = tiny_model("bert", folder / "bert", layers=1, hidden=16)
        build = partial(PPO, encoder=partial(LLMEncoder, model=model, tune=name))
    else:
        build = partial({"ppo": PPO, "dqn": DQN, "sac": SAC, "iql": IQL}[name], encoder=normal)
    return build(spec, encoder_lr=None if name == "frozen" else 1e-2), kwargs["observation"]


@torch.no_grad()
def greedy(agent, observation):
    agent.eval()
    x = agent.preprocess(batch(observation, 0, 1, 2))
    return [agent.act(x, False)["action"], *agent.inspect(x).values()]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(("name", "spelling"), CASES)
def test_names_are_plain_and_weights_go_both_ways(name, spelling, tmp_path):
    (plain, observation), (agent, _) = make(name, tmp_path), make(name, tmp_path, seed=1)
    other = {key: copy.deepcopy(value) for key, value in agent.state_dict().items()}
    versions = list(agent.state_dict()._metadata)
    sizes = [[p.shape for p in g["params"]] for g in agent.parameter_groups()]
    wanted = greedy(plain, observation)
    spelling(agent)
    assert list(agent.state_dict()) == list(plain.state_dict())
    assert list(agent.state_dict()._metadata) == versions
    assert [[p.shape for p in g["params"]] for g in agent.parameter_groups()] == sizes
    agent.load_state_dict(plain.state_dict())
    assert same(greedy(agent, observation), wanted)
    assert same(greedy(copy.deepcopy(agent), observation), wanted)
    plain.load_state_dict(other)
    plain.load_state_dict(agent.state_dict())
    assert same(greedy(plain, observation), wanted)


def test_a_checkpoint_of_a_compiled_policy_can_be_loaded(tmp_path):
    data = ReplayDataModule(
        "Probe-v0",
        env_kwargs={"task": "match"},
        total_frames=20,
        warmup_frames=10,
        frames_per_epoch=10,
        batch_size=4,
    )
    torch.manual_seed(0)
    agent = DQN(data.spec, target_update_frames=0, tau=0.5, encoder=normal)
    twin = copy.deepcopy(agent)
    policy(agent)
    path = tmp_path / "agent.ckpt"
    states = []
    for one in (agent, twin):
        fresh = copy.deepcopy(data)
        fresh.seed = 0
        torch.manual_seed(0)
        trainer = make_trainer(gradient_clip_val=None)
        trainer.fit(one, fresh)
        trainer.save_checkpoint(path)
        states.append(torch.load(path, weights_only=True)["state_dict"])
        assert same(greedy(DQN.load_from_checkpoint(path), "vector"), greedy(one, "vector"))
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    data.total_frames = 30
    make_trainer(gradient_clip_val=None).fit(agent, data, ckpt_path=path)
    assert agent.frames == 30


def test_what_is_compiled_acts_the_same(tmp_path):
    agent, observation = make("dqn", tmp_path)
    expected = greedy(agent, observation)
    policy(agent)
    with torch.compiler.set_stance("default"):
        assert same(greedy(agent, observation), expected)
        assert same(greedy(copy.deepcopy(agent), observation), expected)


def test_a_whole_agent_can_be_compiled(tmp_path):
    data = RolloutDataModule(
        "Probe-v0",
        env_kwargs={"task": "match", "observation": "discrete"},
        num_envs=2,
        rollout_steps=2,
        total_frames=8,
    )
    agent = QTable(data.spec)
    keys = list(agent.state_dict())
    trainer = make_trainer(gradient_clip_val=None)
    trainer.fit(compiled(agent), data)
    trainer.save_checkpoint(tmp_path / "agent.ckpt")
    saved = torch.load(tmp_path / "agent.ckpt", weights_only=True)["state_dict"]
    assert list(saved) == keys
    made = copy.deepcopy(agent)
    assert "training_step" not in vars(made)  # which would still be the original's
    assert same(greedy(made, "discrete"), greedy(agent, "discrete"))


def test_a_file_with_the_wrapper_in_its_names_can_be_loaded(tmp_path):
    plain, _ = make("ppo", tmp_path)
    agent, _ = make("ppo", tmp_path, seed=1)
    wrapped = {
        key.replace("policy.", "policy._orig_mod."): value
        for key, value in plain.state_dict().items()
    }
    agent.load_state_dict(wrapped)
    assert same(greedy(agent, "vector"), greedy(plain, "vector"))
    with pytest.raises(RuntimeError, match="Unexpected key"):
        agent.load_state_dict({**wrapped, "policy._orig_mod.nothing": torch.zeros(1)})


def test_a_target_follows_a_network_that_is_compiled_when_it_is_built():
    spec = EnvSpec(OBSERVATIONS["vector"], RolloutDataModule("Probe-v0").spec.action_space)
    online = compiled(QNetwork(spec, normal))
    copied = make_target(online)
    with torch.no_grad():
        for parameter in online.parameters():
            parameter.add_(1.0)
    online._orig_mod.value = compiled(torch.nn.Linear(1, 1))  # one of them only
    copied_value = make_target(torch.nn.Linear(1, 1))
    (copied._orig_mod if hasattr(copied, "_orig_mod") else copied).value = copied_value
    update = TargetUpdate(online, copied)
    update(0.5)
    update()
    pairs = zip(online.parameters(), copied.parameters(), strict=True)
    assert all(torch.equal(p, q) for p, q in pairs)
