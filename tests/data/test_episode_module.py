"""The data module of episodes: what is learned, counted, validated and resumed."""

import copy
import types

import gymnasium as gym
import lightning as L
import pytest
import talking
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from token_tools import characters, make
from training import fit, make_trainer

from rl_lightning import EnvSpec, EpisodeDataModule, RewardFunction, TableEncoder, agents
from rl_lightning.core.errors import ConfigurationError

WORDS = {"template": "{observation}:", "turn_template": "\n{observation}:", "max_new_tokens": 1}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return characters(tmp_path_factory.mktemp("model") / "characters", positions=128)


def episodes(env="talking:copying", **kwargs):
    known = {
        "actions": ["a", "b"],
        "prompts_per_step": 4,
        "group_size": 4,
        "steps_per_epoch": 2,
        "total_prompts": 16,
        "val_episodes": 6,
        "val_batch": 4,
    }
    return EpisodeDataModule(env, **{**known, **WORDS, **kwargs})


class Watch(L.Callback):
    """Keeps what was learned from, and what was logged."""

    def __init__(self):
        self.batches, self.logged = [], []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if hasattr(batch, "minibatches"):
            batch.minibatches = self._seen(batch.minibatches)
        elif batch is not None:
            self.batches.append(batch.clone())

    def _seen(self, minibatches):
        for one in minibatches:
            self.batches.append(one.clone())
            yield one

    def on_train_epoch_end(self, trainer, module):
        self.logged.append({k: float(v) for k, v in trainer.callback_metrics.items()})


def validated(agent, data, **trainer):
    made = make_trainer(limit_val_batches=1.0, **trainer)
    (found,) = made.validate(agent, data, verbose=False)
    return found


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("GRPO", {"credit": "turn", "scale": "batch"}),
        ("GRPO", {}),
        pytest.param("RLOO", {"credit": "turn", "kl_coef": 0.0}, marks=pytest.mark.slow),
        pytest.param("REINFORCEPlusPlus", {"kl_coef": 0.0}, marks=pytest.mark.slow),
        ("TokenPPO", {"kl_coef": 0.0}),
    ],
)
def test_what_there_is_to_know_is_learned(name, known, model):
    agent = make(name, model, optimizer=lambda groups: torch.optim.Adam(groups, lr=5e-3), **known)
    data = episodes(
        env_kwargs={"turns": 2},
        on_illegal="end",
        prompts_per_step=8,
        group_size=8,
        total_prompts=8 * 100,
    )
    before = validated(agent, data)
    assert before["val/return"] < 1.0
    fit(agent, data)
    after = validated(agent, data)
    assert after["val/return"] > 1.8
    assert after["val/success"] > 0.8
    assert after["val/turns"] == 2.0
    assert after["val/illegal"] == 0.0


def test_a_step_plays_its_seeds_and_tells_of_them(model):
    watch, data = Watch(), episodes(env_kwargs={"ragged": True}, seed=40)
    fit(make("GRPO", model), data, callbacks=[watch], log_every_n_steps=1)
    assert len(watch.batches) == 4
    for batch in watch.batches:
        assert batch.batch_size == (4,)
        assert batch["own"].shape[1] == 4
        torch.testing.assert_close(batch["token_reward"].sum(-1), batch["reward"])
    told = watch.logged[-1]
    assert 1.0 <= told["train/turns"] <= 4.0
    assert 0.0 <= told["policy/illegal"] <= 1.0
    for name in ("train/return", "train/success", "reward/env", "reward/illegal", "completion/cut"):
        assert name in told


def seeds_of(data, agent, **trainer):
    """Seeds that training's environments were reset with, step by step."""
    seen, own = [], talking.Copying.reset

    def reset(self, *, seed=None, options=None):
        seen.append(seed)
        return own(self, seed=seed, options=options)

    talking.Copying.reset = reset
    try:
        fit(agent, data, **trainer)
    finally:
        talking.Copying.reset = own
    return seen


def test_training_has_seeds_of_its_own(model):
    seen = seeds_of(episodes(seed=40), make("GRPO", model))
    assert seen == [40 + n // 4 for n in range(64)]
    seen = seeds_of(episodes(seed=40), make("GRPO", model), limit_val_batches=1.0)
    assert sorted({*seen}) == [*range(40, 56), *range(1_000_000, 1_000_006)]
    with pytest.raises(ConfigurationError, match=r"data\.val_seed: 50, .* give one that is 56"):
        episodes(seed=40, val_seed=50)


def test_training_s_seeds_are_counted_in_whole_epochs(model):
    episodes(seed=40, val_seed=56, total_prompts=9)
    with pytest.raises(ConfigurationError, match=r"has 40 to 55.* give one that is 56"):
        episodes(seed=40, val_seed=55, total_prompts=9)
    episodes(seed=40, val_seed=44, total_prompts=3)  # an epoch is no longer than the budget
    data = episodes(seed=40, val_seed=56, total_prompts=15, steps_per_epoch=1)
    data.trainer = types.SimpleNamespace(world_size=3)
    with pytest.raises(ConfigurationError, match=r"has 40 to 63.* give one that is 64"):
        data.open_source(0)


def test_evaluation_plays_the_same_episodes_and_leaves_training_alone(model):
    ends = []
    for validates in (0, 1.0):
        agent = make("GRPO", model)
        torch.manual_seed(7)
        fit(agent, episodes(val_temperature=1.0), limit_val_batches=validates)
        ends.append(torch.cat([p.detach().flatten() for p in agent.parameters()]))
    assert torch.equal(*ends)
    agent = make("GRPO", model)
    data = episodes(val_temperature=1.0, success_threshold=0.5, env_kwargs={"turns": 3})
    first, again = validated(agent, data), validated(agent, data)
    assert first == again
    other = validated(agent, episodes(val_temperature=1.0, env_kwargs={"turns": 3}, val_seed=77))
    assert other["val/return"] != first["val/return"]


def test_success_is_what_the_environment_says_or_else_a_return(model):
    agent = make("GRPO", model)
    text = {"actions": None, "env_kwargs": {"text": True}}
    assert validated(agent, episodes(success_threshold=-1.0, **text))["val/success"] < 1.0
    data = episodes("talking:guess", actions=None, max_turns=2, success_threshold=0.0)
    assert "val/success" not in validated(agent, data)  # of episodes that were cut nobody says it


def test_predictions_tell_episodes_turn_by_turn(model):
    agent = make("GRPO", model)
    data = episodes(env_kwargs={"turns": 2}, val_samples=2, val_temperature=1.0)
    batches = make_trainer().predict(agent, data)
    lines = [line for batch in batches for line in batch]
    assert len(lines) == 12
    assert {line["seed"] for line in lines} == set(range(3_000_000, 3_000_006))
    for line in lines:
        assert len(line["turns"]) == 2
        assert line["completion"].startswith(line["turns"][0]["wrote"])
        assert line["reward"] == pytest.approx(
            sum(turn["reward"] - 0.1 * turn["illegal"] for turn in line["turns"])
        )


KNOBS = [
    {"on_illegal": "end"},
    {"illegal_reward": -2.0},
    {"max_turns": 1},
    {"turn_template": "\nc{observation}:"},
    {"template": "c{observation}:"},
    {"env_reward_weight": 0.25},
    {"answer": "(a)"},
    {"actions": ["b", "a"]},
    {"stop": ["a"], "max_new_tokens": 2},
    {"seed": 5},
    {"temperature": 0.5},
    {"env_kwargs": {"turns": 3}},
    {
        "rewards": [
            lambda prompts, completions, **columns: [text.count("a") for text in completions]
        ]
    },
]


@pytest.mark.parametrize("knob", KNOBS, ids=lambda knob: next(iter(knob)))
def test_every_knob_changes_what_is_learned(knob, model):
    ends = []
    for given in ({}, knob):
        agent, watch = make("GRPO", model), Watch()
        torch.manual_seed(7)
        data = episodes(**{"max_new_tokens": 2 if "stop" in knob else 1, **given})
        fit(agent, data, callbacks=[watch])
        names = ("prompt", "ids", "reward", "temperature")
        ends.append([b[name].tolist() for b in watch.batches for name in names])
    assert ends[0] != ends[1]


def test_evaluation_s_knobs(model):
    agent = make("GRPO", model)
    found = validated(agent, episodes(val_env_kwargs={"turns": 4}, val_episodes=3))
    assert found["val/turns"] == 4.0
    assert validated(agent, episodes(val_samples=3, val_temperature=1.0))["val/pass@3"] >= 0.0


def test_environments_are_wrapped(model):
    data = episodes(wrappers=[{"TimeLimit": {"max_episode_steps": 1}}], env_kwargs={"turns": 5})
    assert validated(make("GRPO", model), data)["val/turns"] == 1.0


def run(agent, data, folder, epochs, ckpt_path=None):
    saver = ModelCheckpoint(
        folder, "last", save_on_train_epoch_end=True, enable_version_counter=False
    )
    made = make_trainer(max_epochs=epochs, callbacks=[saver], enable_checkpointing=True)
    torch.manual_seed(3)
    made.fit(agent, data, ckpt_path=ckpt_path, weights_only=True)
    return torch.load(folder / "last.ckpt", weights_only=True)


@pytest.mark.parametrize("name", ["GRPO", "TokenPPO"])
def test_resumed_equals_uninterrupted_bit_for_bit(name, model, tmp_path):
    known = {"env_kwargs": {"ragged": True}, "passes": 2, "minibatch_prompts": 2}
    known |= {"total_prompts": 10**5}

    def new():
        return make(name, model, kl_coef=0.1), episodes(**known)

    whole = run(*new(), tmp_path / "whole", 4)
    run(*new(), tmp_path / "parts", 2)
    torch.manual_seed(99)
    parts = run(*new(), tmp_path / "parts", 4, tmp_path / "parts" / "last.ckpt")
    for key, value in whole["state_dict"].items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, parts["state_dict"][key]), key
    kept = EpisodeDataModule.__qualname__
    assert whole[kept]["frames"] == parts[kept]["frames"] == 32
    assert torch.equal(
        whole[kept]["ranks"][0]["rng"]["torch"], parts[kept]["ranks"][0]["rng"]["torch"]
    )


def test_another_environment_is_told_of(model, tmp_path):
    run(make("GRPO", model), episodes(total_prompts=10**5), tmp_path, 1)
    data = episodes(total_prompts=10**5, env_kwargs={"turns": 3})
    with pytest.warns(UserWarning, match=r"data\.env: training began with"):
        run(make("GRPO", model), data, tmp_path, 2, tmp_path / "last.ckpt")


def test_environments_are_closed_and_a_copy_has_none(model):
    agent, data = make("GRPO", model), episodes()
    made, own = [], talking.Copying.close
    talking.Copying.close = lambda self: made.append(self)
    try:
        fit(agent, data, limit_val_batches=1.0)
    finally:
        talking.Copying.close = own
    assert len(made) == 16 + 4
    copied = copy.deepcopy(data)
    assert copied.env == "talking:copying"
    assert not copied._copies


def test_mistakes_are_told_in_a_sentence(model):
    agent = make("GRPO", model)
    for wrong, says in [
        ({"actions": ["a"]}, "1 texts say what the 2 actions"),
        ({"actions": None}, "nobody says what the 2 actions"),
        ({"actions": ["a", " A."]}, "give it another name"),
        ({"env": "talking:broken", "actions": None}, "object is no environment to speak with"),
        ({"env": "talking:nothing"}, "talking has no function nothing"),
        ({"env": "no_such_module:make"}, "No module named"),
        ({"env": "CartPole-v1"}, "wrap the environment in `Describe`"),
        ({"template": "{board}:"}, r"no field \{board\}"),
        ({"turn_template": "{observation}"}, "ends in a field"),
        ({"chat": True}, "no chat template"),
        ({"max_new_tokens": 126}, "room for 2 in front of a turn"),
        ({"group_size": 1}, "GRPO compares"),
    ]:
        with pytest.raises(ConfigurationError, match=says):
            fit(agent, episodes(**wrong))
    for wrong, says in [
        ({"on_illegal": "ignore"}, "on_illegal='ignore'"),
        ({"max_turns": 0}, r"data\.max_turns"),
        ({"illegal_reward": float("nan")}, r"data\.illegal_reward"),
        ({"answer": "("}, "is no regular expression"),
        ({"rewards": [RewardFunction(nothing, name="illegal")]}, "'illegal' is what playing is"),
        ({"prompts": ["a"]}, "no argument 'prompts'"),
    ]:
        with pytest.raises(ConfigurationError, match=says):
            episodes(**wrong)
    with pytest.raises(ConfigurationError, match="does not learn from completions"):
        fit(agents.PPO(EnvSpec(*[gym.spaces.Discrete(2)] * 2), TableEncoder), episodes())


def nothing(prompts, completions):
    return [0.0] * len(completions)
