"""Random network distillation: what is new pays, what is known does not."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from llm_tiny import tiny_model
from reward_tools import TEXT, ready, step

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.core.types import EnvSpec
from rl_lightning.rewards import RNDBonus
from rl_lightning.rewards import rnd_bonus as module

VECTOR = EnvSpec(gym.spaces.Box(-9, 9, (3,)), gym.spaces.Discrete(2), "Vectors-v0")
SMALL = {"hidden": (16,), "out_dim": 4, "update_frames": 16, "batch_size": 8, "lr": 1e-2}


@pytest.fixture(autouse=True)
def _as_the_stage_asks():
    with torch.no_grad():
        yield


def make(num_envs=2, spec=VECTOR, **arguments):
    return ready(RNDBonus(spec, **{**SMALL, **arguments}), num_envs)


def play(reward, count, seed=0, **flags):
    """Steps with random observations; what each paid, `[count, B]`."""
    random = np.random.default_rng(seed)
    paid = []
    for _ in range(count):
        obs = random.normal(size=(reward.num_envs, 3)).astype(np.float32)
        paid.append(torch.as_tensor(reward(step(obs, obs, **flags))).numpy().copy())
    return np.array(paid)


def test_nothing_is_paid_before_the_deviation_is_known():
    paid = play(make(), 24)  # trained after 8 and 16 steps of two environments
    assert (paid[:16] == 0).all()
    assert (paid[16:] > 0).all()
    assert make(update_frames=48).update_frames == 48
    assert (play(make(update_frames=48), 24) == 0).all()


def test_by_hand():
    """What is paid is ‖p − t‖² of normalised vectors, by the deviation of its discounted sum."""
    reward = make()
    play(reward, 17)
    obs = np.array([[1.0, -2.0, 0.5], [0.0, 40.0, 0.0]], np.float32)
    mean, scale = reward.norm.running.scale()
    x = ((torch.from_numpy(obs) - mean) * scale).clamp(-5, 5)
    assert x[1, 1] == 5.0
    with torch.no_grad():
        raw = (reward.predictor(x) - reward.target(x)).square().sum(1)
    sigma = reward.bonuses.variance.sqrt()
    carry = 0.99 * reward._carry + raw
    got = reward(step(obs, obs))
    assert torch.allclose(got, raw / sigma, rtol=1e-5)
    assert torch.allclose(reward._carry, carry)
    assert reward.metrics()["deviation"] == pytest.approx(float(sigma))


def test_what_is_seen_again_and_again_pays_less_than_what_is_new():
    reward = make(update_frames=32, passes=8)
    play(reward, 160)
    known, new = np.zeros((2, 3), np.float32), np.full((2, 3), 6.0, np.float32)
    again = float(torch.as_tensor(reward(step(known, known))).mean())
    assert again * 10 < float(torch.as_tensor(reward(step(new, new))).mean())


def test_each_argument_matters():
    def last(**arguments):
        return play(make(**arguments), 24)[-1].tolist()

    usual = last()
    assert usual == last()
    for other in (
        {"hidden": (8,)},
        {"out_dim": 5},
        {"lr": 1e-3},
        {"update_frames": 18},
        {"batch_size": 4},
        {"passes": 2},
        {"bonus_gamma": 0.5},
        {"seed": 1},
    ):
        assert last(**other) != usual, other


def test_the_runs_random_numbers_are_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    play(make(), 10)
    assert torch.equal(torch.rand(3), expected)


def test_resets_are_not_learned_from_and_count_as_frames():
    reward = make()
    play(reward, 7, valid=[1, 0])
    assert sum(len(rows) for rows in reward._seen) == 7
    play(reward, 17, seed=1, valid=[1, 0])
    assert reward.norm.running.count == 24
    assert (play(reward, 1, seed=2, valid=[1, 0])[0] > 0).tolist() == [True, False]


def test_one_entry_and_other_kinds_of_numbers():
    pixels = gym.spaces.Box(0, 255, (2, 2), np.uint8)
    space = gym.spaces.Dict({"a": pixels, "b": TEXT.observation_space})
    spec = EnvSpec(space, gym.spaces.Discrete(2), "Parts-v0")
    reward = ready(RNDBonus(spec, entry="a", **SMALL), 1)
    obs = {"a": np.full((1, 2, 2), 200, np.uint8), "b": ("x",)}
    reward(step(obs, obs))
    assert torch.equal(reward._seen[0], torch.full((1, 4), 200.0))
    with pytest.raises(ConfigurationError, match=r"no entry 'c' .* it has 'a', 'b'"):
        RNDBonus(spec, entry="c")
    with pytest.raises(ConfigurationError, match=r"reads vectors and texts, not Dict.*CountBonus"):
        RNDBonus(spec)


def test_texts_are_embedded(tmp_path):
    reward = ready(RNDBonus(TEXT, model=tiny_model("bert", tmp_path / "b"), layers=1, **SMALL), 1)
    reward(step(("a",), ("go to the red ball",)))
    assert torch.equal(reward._seen[0], reward.embedder(["go to the red ball"]))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"lr": -1.0}, "lr must be at least 0"),
        ({"bonus_gamma": 2.0}, "bonus_gamma must be between 0 and 1"),
        ({"update_frames": 0}, "update_frames must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"passes": 0}, "passes must be at least 1"),
        ({"hidden": (0,)}, "hidden must be at least 1"),
        ({"hidden": ()}, "hidden must name one width at least"),
        ({"out_dim": 0}, "out_dim must be at least 1"),
        ({"seed": -1}, "seed must be at least 0"),
    ],
)
def test_wrong_arguments_are_told(arguments, told):
    with pytest.raises(ConfigurationError, match=told):
        RNDBonus(VECTOR, **arguments)


@pytest.mark.parametrize("steps", [3, 8, 11, 19])
def test_it_goes_on_from_where_it_stood(steps):
    first, second = make(), make(seed=7)
    play(first, steps)
    second.load_state_dict(first.state_dict())
    second.load_episode_state(first.episode_state())
    assert (play(first, 20, seed=3) == play(second, 20, seed=3)).all()


def test_ranks_train_one_predictor(monkeypatch):
    """The mean of two ranks' gradients; the other one's is three times this one's."""
    reward, alone = make(), make()
    monkeypatch.setattr(module, "world_size", lambda: 2)
    monkeypatch.setattr(module.dist, "all_reduce", lambda gradient: gradient.mul_(4.0))
    seen = []
    reward.optimizer.step = lambda: seen.append(reward.predictor[0].weight.grad.clone())
    alone.optimizer.step = lambda: seen.append(alone.predictor[0].weight.grad.clone())
    play(reward, 8)
    monkeypatch.setattr(module, "world_size", lambda: 1)
    play(alone, 8)
    assert len(seen) == 4
    assert torch.allclose(seen[0], 2 * seen[2])
