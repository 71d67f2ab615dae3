"""Prompts, and what trainers are told beside them."""

import warnings

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from token_tools import characters, letters_in, make, prompts
from training import fit, make_trainer

from rl_lightning.core.errors import ConfigurationError


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return characters(tmp_path_factory.mktemp("model") / "characters")


def weights(agent):
    return torch.cat([p.detach().flatten() for p in agent.parameters()])


def sgd(groups):
    return torch.optim.SGD(groups, lr=0.1)


def trained(model, data=None, agent=None, name="GRPO", **trainer):
    """An agent after two steps of four prompts, and its trainer."""
    torch.manual_seed(7)
    made, one = make_trainer(**trainer), make(name, model, **(agent or {}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made.fit(one, prompts(**{"total_prompts": 8, **(data or {})}))
    return one, made


def logged(trainer):
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def test_updates_that_are_gathered_are_one(model):
    step = {"total_prompts": 4, "steps_per_epoch": 1}
    parts = {**step, "minibatch_prompts": 2}
    agent, free = {"optimizer": sgd}, {"gradient_clip_val": None}
    whole, _ = trained(model, step, agent, **free)
    one, trainer = trained(model, parts, agent, accumulate_grad_batches=2, **free)
    assert one.updates == whole.updates == trainer.global_step == 1
    torch.testing.assert_close(weights(one), weights(whole), rtol=1e-4, atol=1e-6)
    two, _ = trained(model, parts, agent, **free)
    assert two.updates == 2
    assert (weights(two) - weights(whole)).abs().max() > 1e-5


@pytest.mark.parametrize("given", [{"gradient_clip_val": 1e-3}, {"agent": {"max_grad_norm": 1e-3}}])
def test_gradients_are_clipped(given, model):
    agent = {"optimizer": sgd, **given.get("agent", {})}
    clip = {"gradient_clip_val": given.get("gradient_clip_val")}
    before = weights(make("GRPO", model))
    after, _ = trained(model, {"total_prompts": 4, "steps_per_epoch": 1}, agent, **clip)
    assert float((weights(after) - before).norm()) == pytest.approx(0.1 * 1e-3, rel=0.02)


def test_the_learning_rate_falls_with_the_budget(model):
    data = {"total_prompts": 32, "steps_per_epoch": 2}
    for schedule, share in (("constant", 1.0), ("linear", 0.0)):
        agent, trainer = trained(model, data, {"lr_schedule": schedule})
        assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-3 * share, abs=2e-4)
        assert agent.frames == 32


@pytest.mark.parametrize("tune", ["full", "lora"])
def test_layers_that_are_computed_twice_learn_the_same(tune, model):
    learned, calls = [], []
    for again in (False, True):
        torch.manual_seed(7)
        agent = make("GRPO", model, tune=tune, gradient_checkpointing=again)
        layer = next(m for m in agent.modules() if type(m).__name__ == "LlamaMLP")
        calls.append(0)

        def count(*args):
            calls[-1] += 1

        layer.register_forward_pre_hook(count)
        learned.append(weights(fit(agent, prompts(total_prompts=8))))
    torch.testing.assert_close(*learned, rtol=1e-5, atol=1e-7)
    assert not learned[0].equal(weights(make("GRPO", model, tune=tune)))
    assert calls[1] > calls[0]


@pytest.mark.parametrize("name", ["GRPO", "TokenPPO", "SFT"])
def test_bfloat16_is_like_float32_up_to_rounding(name, model):
    found = {}
    for precision in ("32-true", "bf16-mixed"):
        data = {"group_size": 8, "passes": 2}
        agent, trainer = trained(model, data, name=name, precision=precision, log_every_n_steps=1)
        assert {p.dtype for p in agent.parameters()} == {torch.float32}
        assert bool(weights(agent).isfinite().all())
        found[precision] = logged(trainer)
    exact, rounded = found["32-true"], found["bf16-mixed"]
    assert rounded["policy/entropy"] == pytest.approx(exact["policy/entropy"], abs=0.02)
    if name != "SFT":
        assert exact["policy/sampler_gap"] < 1e-5 < rounded["policy/sampler_gap"] < 0.02


def test_training_stops_where_evaluation_says_so(model, tmp_path):
    best = ModelCheckpoint(tmp_path, "best", monitor="val/reward", mode="max")
    stop = EarlyStopping("val/reward", patience=1000, mode="max", stopping_threshold=0.5)
    agent, _ = trained(
        model,
        {"total_prompts": 4000, "steps_per_epoch": 1},
        callbacks=[best, stop],
        enable_checkpointing=True,
        limit_val_batches=1.0,
    )
    assert 0 < agent.frames < 4000
    assert stop.stopped_epoch > 0
    assert float(best.best_model_score) > 0.5
    held = torch.load(best.best_model_path, weights_only=True)
    assert held["state_dict"].keys() == agent.state_dict().keys()


def test_a_limit_on_batches_leaves_the_rest_of_the_prompts_out(model):
    asked = []

    def seen(prompts, completions):
        asked.append(len(prompts))
        return [0.0] * len(completions)

    given = {"rewards": [seen], "val_share": 0.5, "val_batch": 2}
    for limit, expected in ((1, [2]), (1.0, [2, 2, 1]), (0.67, [2, 2])):
        asked.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            make_trainer(limit_val_batches=limit).validate(
                make("GRPO", model), prompts(**given), verbose=False
            )
        assert asked == expected


def test_a_dry_run_is_one_step_and_one_evaluation(model):
    agent, trainer = trained(model, {"total_prompts": 400}, fast_dev_run=True)
    assert (agent.frames, agent.updates) == (4, 1)
    assert "val/reward" in logged(trainer)


def test_a_limit_on_training_batches_is_refused(model):
    with pytest.raises(ConfigurationError, match=r"trainer\.limit_train_batches: 1 would throw"):
        fit(make("GRPO", model), prompts(), limit_train_batches=1)


def test_a_reward_that_applies_nowhere_has_no_curve(model):
    def rare(prompts, completions):
        return [None] * len(completions)

    def some(prompts, completions):
        return [3.0, *[None] * (len(completions) - 1)]

    _, trainer = trained(
        model, {"rewards": [letters_in, rare, some]}, log_every_n_steps=1, limit_val_batches=1.0
    )
    found = logged(trainer)
    assert not {"reward/rare", "val/reward_rare"} & set(found)
    assert found["reward/some"] == found["val/reward_some"] == 3.0
    assert found["reward/total"] == pytest.approx(found["reward/letters_in"] + 3.0 / 16)
    assert all(value == value for value in found.values())


@pytest.mark.parametrize("tune", ["full", "lora"])
def test_where_nothing_is_good_enough_nothing_is_imitated_and_that_is_said(tune, model):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        agent = make("SFT", model, min_reward=5.0, tune=tune)
        before = weights(agent)
        trainer = make_trainer(log_every_n_steps=1)
        trainer.fit(agent, prompts())
    said = [str(one.message) for one in told]
    assert sum("none reached model.min_reward" in one for one in said) == 1
    assert not any("nearly deterministic" in one for one in said)
    assert logged(trainer)["policy/imitated"] == 0.0
    assert weights(agent).equal(before)


def test_a_policy_that_tries_nothing_is_warned_of(model):
    with pytest.warns(UserWarning, match="the policy is nearly deterministic"):
        make_trainer(log_every_n_steps=1).fit(
            make("GRPO", model), prompts(temperature=0.001, total_prompts=4)
        )


def test_a_baseline_of_the_group_needs_one(model):
    alone = {"group_size": 1, "total_prompts": 4}
    assert fit(make("REINFORCEPlusPlus", model), prompts(**alone)).updates == 1
    with pytest.raises(ConfigurationError, match=r"give 2 at least, or use .* without a baseline"):
        fit(make("REINFORCEPlusPlus", model, baseline="group"), prompts(**alone))
