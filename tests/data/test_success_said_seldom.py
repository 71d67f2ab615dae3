"""Environments that speak of success only where there is one: what an evaluation comes to."""

import pytest
import torch
from token_tools import characters, make
from training import fit, make_trainer

from rl_lightning import EpisodeDataModule
from rl_lightning.agents import evaluated_completions


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return characters(tmp_path_factory.mktemp("model") / "characters", positions=128)


def seldom(**kwargs):
    known = {
        "template": "{observation}:",
        "turn_template": "\n{observation}:",
        "max_new_tokens": 1,
        "prompts_per_step": 4,
        "group_size": 2,
        "steps_per_epoch": 1,
        "total_prompts": 8,
        "val_episodes": 4,
        "val_batch": 2,
    }
    return EpisodeDataModule("talking:seldom", **{**known, **kwargs})


def validated(agent, data):
    (found,) = make_trainer(limit_val_batches=1.0).validate(agent, data, verbose=False)
    return found


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_who_says_nothing_has_failed_whatever_batch_it_is_in(size, model):
    agent, data = make("GRPO", model), seldom(val_batch=size)
    first, again = validated(agent, data), validated(agent, data)
    assert first["val/success"] == first["val/pass@1"] == 0.25
    assert first == again


def test_several_samples_count_likewise(model):
    data = seldom(val_samples=2, val_temperature=1.0)
    found = validated(make("GRPO", model), data)
    assert found["val/success"] == found["val/pass@1"] == found["val/pass@2"] == 0.25


def test_where_nobody_ever_says_it_nothing_is_logged(model):
    found = validated(make("GRPO", model), seldom(env_kwargs={"every": 0}))
    assert not {"val/success", "val/pass@1"} & {*found}
    agent = make("GRPO", model)
    fit(agent, seldom(env_kwargs={"every": 0}), limit_val_batches=1.0)
    assert not {"val/success", "train/success"} & {*agent.trainer.callback_metrics}


def test_what_training_has_heard_makes_an_evaluation_without_any_0(model):
    agent, data = make("GRPO", model), seldom(val_env_kwargs={"every": 0})
    fit(agent, data, limit_val_batches=1.0, log_every_n_steps=1)
    logged = agent.trainer.callback_metrics
    assert float(logged["train/success"]) == 0.25
    assert float(logged["val/success"]) == float(logged["val/pass@1"]) == 0.0
    resumed = seldom(val_env_kwargs={"every": 0})
    assert "val/success" not in validated(agent, resumed)
    resumed.load_state_dict(data.state_dict())
    assert validated(agent, resumed)["val/success"] == 0.0
    before = {k: v for k, v in data.state_dict().items() if k != "hears_success"}
    resumed.load_state_dict(before)  # of an earlier version
    assert "val/success" not in validated(agent, resumed)


def test_another_run_has_heard_of_nothing(model):
    data = seldom(env_kwargs={"every": 0})
    data.load_state_dict({**data.state_dict(), "hears_success": True})
    fit(make("GRPO", model), data)
    assert not data.state_dict()["hears_success"]


def test_predictions_say_it_once_it_is_known(model):
    agent, data = make("GRPO", model), seldom()
    for known in ([None, None, False, True], [False, False, False, True]):
        batches = make_trainer().predict(agent, data)
        assert [line.get("success") for batch in batches for line in batch] == known


def test_what_one_rank_has_heard_holds_for_all(model, monkeypatch):
    agent = make("GRPO", model)
    ranks = {bool: True, tuple: ({"success": 1.0}, {"success": 1.0})}
    monkeypatch.setattr(evaluated_completions, "gather", lambda own: [own, ranks[type(own)]])
    logged = {}
    agent.log_dict = logged.update
    nobody = torch.full((1, 1), torch.nan)
    agent._episodes = [{"success": nobody.flatten(), "right": nobody}]
    agent._log_episodes("val")
    assert float(logged["val/success"]) == 0.5
    assert float(logged["val/pass@1"]) == 0.0
