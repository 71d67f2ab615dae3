"""How the comparison of agents with baselines counts."""

import learning
import optimise_tasks
import pytest


def row(*scores, seeds=(1.0,)):
    episodes = [{"return": score, "best_accuracy": score} for score in scores]
    return {"chosen": {}, "cpu_seconds": 0.1, "episodes": episodes, "seeds": list(seeds)}


def test_an_agent_s_numbers_are_means_over_its_seeds_task_by_task():
    played = ({"return": 1.0, "width": 4}, {"return": 2.0, "width": 4})
    assert optimise_tasks.averaged(played) == {"return": 1.5, "width": 4}


def test_everything_is_compared_with_the_best_that_is_no_agent_and_sees_no_gradient():
    rows = {
        "random": row(0.1, 0.3),
        "good": row(0.4, 0.6),
        "gradient descent": row(0.9, 0.9),
        f"{optimise_tasks.AGENT}2 × x": row(0.6, 0.6, seeds=(0.5, 0.7)),
    }
    found = optimise_tasks.summed_up("ParameterTuning-v0", rows)
    name = "best_accuracy − good"
    assert found["random"][name] == [-0.3, 0.0]
    assert found["agent, 2 × x"][name] == [0.1, 0.1]
    assert found["agent, 2 × x"]["seeds"] == [0.5, 0.7]
    assert "seeds" not in found["good"]
    found = optimise_tasks.summed_up("ParameterTuning-v0", rows, "random")
    assert found["good"]["best_accuracy − random"] == [0.3, 0.0]
    with pytest.raises(SystemExit, match="--against bad: there is random, good"):
        optimise_tasks.summed_up("ParameterTuning-v0", rows, "bad")


def test_a_configuration_s_environment_and_agents(tmp_path):
    config = tmp_path / "ppo" / "some.yaml"
    config.parent.mkdir()
    config.write_text("data: {init_args: {env_kwargs: {widths: [3], actions: continuous}}}")
    kwargs = {"widths": [3], "actions": "continuous"}
    assert optimise_tasks.data_of(config) == {"env_kwargs": kwargs}
    with pytest.raises(SystemExit, match=r"run benchmarks/learning.py .*some.yaml --keep"):
        optimise_tasks.trained(config, tmp_path, {})


def test_checkpoints_are_kept_where_that_is_asked_for(tmp_path, monkeypatch):
    path = tmp_path / "ppo" / "some.yaml"

    def cli(verb, *arguments):
        folder = next(a for a in arguments if a.startswith("--checkpoint.dirpath="))
        last = learning.Path(folder.split("=")[1]) / "last.ckpt"
        last.parent.mkdir(exist_ok=True)
        last.write_text("weights")
        return "trained 100 of 100 frames at 50 frames/s"

    monkeypatch.setattr(learning, "cli", cli)
    learning.run_seed(path, 3, None, [])
    assert not list(tmp_path.iterdir())
    learning.run_seed(path, 3, None, [], tmp_path / "kept")
    assert (tmp_path / "kept" / "ppo-some-3.ckpt").read_text() == "weights"


class Steps:
    """Two steps, each rewarded by its action."""

    def reset(self, options):
        self.done = 0
        return 0, {}

    def step(self, action):
        self.done += 1
        return 0, action, self.done == 2, False, {}


class Drawn:
    def __init__(self):
        self.numbers = iter([3, 1, 5, 2, 0, 4])

    def predict(self, obs, explore):
        return next(self.numbers) if explore else 9


def test_the_best_of_an_agent_s_samples_is_repeated():
    agent = optimise_tasks.Trained.__new__(optimise_tasks.Trained)
    agent.agent, agent.explore, agent.samples = Drawn(), False, 3
    agent.begin(Steps(), 1)
    assert [agent.act(0, {}) for _ in range(2)] == [5, 2]
    agent.samples = 0
    agent.begin(Steps(), 1)
    assert agent.act(0, {}) == 9
