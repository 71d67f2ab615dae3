"""Agents of tokens: what their losses are, whatever model and data."""

import copy
import inspect

import pytest
import torch
from every_agent import TOKEN_AGENTS
from token_tools import SPEC, batch, characters, make

from rl_lightning import GRPO, RLOO, SFT, Agent, REINFORCEPlusPlus, TokenPPO, agents
from rl_lightning.core.errors import ConfigurationError
from rl_lightning.maths.token_advantages import group_advantages, rloo_advantages

COMPARES = ["GRPO", "REINFORCEPlusPlus", "RLOO", "TokenPPO"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return characters(tmp_path_factory.mktemp("model") / "characters")


def prepared(agent, rows=3, once=False, **kwargs):
    with torch.no_grad():
        return agent.prepare_completions(batch(agent, **kwargs), rows, once)


def gradient(agent, rows):
    agent.zero_grad()
    agent.loss(rows).value.backward()
    return torch.cat([p.grad.flatten() for p in agent.parameters() if p.grad is not None])


def by_hand(agent, rows):
    """log π of each token, by transformers alone and one completion at a time, `[P, G, T]`."""
    out = torch.zeros(rows["ids"].shape)
    for p, g in torch.cartesian_prod(*map(torch.arange, out.shape[:2])).tolist():
        prompt = rows["prompt"][p, : rows["prompt_length"][p]].long()
        ids = rows["ids"][p, g, : rows["length"][p, g]].long()
        logits = agent.backbone.model(input_ids=torch.cat([prompt, ids])[None]).logits[0]
        said = (logits / rows["temperature"][p]).log_softmax(-1)[len(prompt) - 1 : -1]
        out[p, g, : len(ids)] = said.gather(1, ids[:, None])[:, 0]
    return out


@pytest.mark.parametrize("tune", ["full", "lora"])
@pytest.mark.parametrize("name", COMPARES)
def test_the_first_importance_ratio_is_one(name, tune, model):
    agent = make(name, model, tune=tune, kl_coef=0.1)
    rows = prepared(agent, rows=1)
    for row in rows.split(1):
        told = agent.loss(row).metrics
        assert float(told["policy/ratio"]) == pytest.approx(1.0, abs=1e-6)
        assert float(told["policy/kl"]) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("name", COMPARES)
def test_log_probabilities_before_a_single_update_need_no_pass_of_their_own(name, model):
    agent = make(name, model, kl_coef=0.0)
    once, again = prepared(agent, once=True), prepared(agent, once=False)
    assert ("log_prob" in once.keys()) == (name == "TokenPPO")  # noqa: SIM118
    torch.testing.assert_close(gradient(agent, once), gradient(agent, again))


def test_the_loss_of_grpo_is_what_its_formula_says(model):
    agent = make("GRPO", model, loss_type="grpo")
    rows = prepared(agent, once=True)
    advantage = group_advantages(rows["reward"].flatten(), 4).view(3, 4)
    said = by_hand(agent, rows)
    own = rows["own"]
    ratio = (said - said.detach()).exp()
    expected = -((ratio * advantage[..., None] * own).sum(-1) / own.sum(-1)).mean()
    found = agent.loss(rows).value
    torch.testing.assert_close(found, expected)
    agent.zero_grad()
    expected.backward()
    wanted = torch.cat([p.grad.flatten() for p in agent.parameters() if p.grad is not None])
    torch.testing.assert_close(gradient(agent, rows), wanted, rtol=1e-4, atol=1e-6)


def test_a_loss_in_pieces_adds_up_to_the_loss_of_the_whole(model):
    for loss_type in ("grpo", "dr_grpo", "dapo", "cispo"):
        agent = make("GRPO", model, loss_type=loss_type)
        whole = gradient(agent, prepared(agent, rows=4, p=4))
        parts = [gradient(agent, row) for row in prepared(agent, rows=1, p=4).split(1)]
        torch.testing.assert_close(torch.stack(parts).mean(0), whole, rtol=1e-4, atol=1e-6)


def test_means_over_a_minibatch_are_its_own_in_bnpo(model):
    agent = make("GRPO", model, loss_type="bnpo")
    assert "normalizer" not in prepared(agent).keys()  # noqa: SIM118


@pytest.mark.parametrize("tune", ["full", "lora"])
@pytest.mark.parametrize("name", ["GRPO", "RLOO", "REINFORCEPlusPlus", "TokenPPO", "DPO"])
def test_the_reference_is_the_model_before_training(name, tune, model):
    known = {} if name == "DPO" else {"kl_coef": 0.5}
    agent = make(name, model, tune=tune, **known)
    pair = {"g": 2}
    first = prepared(agent, **pair)["reference_log_prob"]
    torch.testing.assert_close(first, by_hand(agent, batch(agent, **pair)))
    optimizer = agent.configure_optimizers()
    gradient(agent, prepared(agent, **pair))
    optimizer.step()
    again = prepared(agent, **pair)
    torch.testing.assert_close(again["reference_log_prob"], first)
    assert (by_hand(agent, again) - first).abs().max() > 1e-5  # the model itself has learned


def test_a_reference_that_can_be_loaded_again_is_in_no_checkpoint(model):
    agent = make("GRPO", model, kl_coef=0.1)
    frozen = [name for name in agent.state_dict() if name.startswith("frozen.")]
    assert not [name for name in frozen if "_extra_state" not in name]
    own = make(
        "GRPO",
        model,
        kl_coef=0.1,
        pretrained=False,
        config_overrides={"num_hidden_layers": 1},
    )
    assert any("layers" in name for name in own.state_dict() if name.startswith("frozen."))
    assert not any(p.requires_grad for p in own.frozen.parameters())


def test_a_kl_to_the_reference_holds_the_policy_back(model):
    agent, other = (make("GRPO", model, kl_coef=beta) for beta in (0.0, 5.0))
    rows = prepared(other)
    shifted = rows.clone()
    shifted["reference_log_prob"] = rows["reference_log_prob"] + 0.5
    assert gradient(other, shifted).sub(gradient(agent, shifted)).abs().max() > 1e-4


KNOBS = {
    "importance": "sequence",
    "loss_type": "grpo",
    "clip_low": 0.01,
    "clip_high": 0.01,
    "dual_clip": 1.21,
    "scale": "none",
    "kl_coef": 1.0,
    "kl_estimator": "k1",
    "kl_correction": False,
}


@pytest.mark.parametrize("knob", KNOBS)
def test_every_knob_of_grpo_changes_what_is_learned(knob, model):
    known = {"kl_coef": 0.5} if knob.startswith("kl_") and knob != "kl_coef" else {}
    learned = []
    for given in (known, {**known, knob: KNOBS[knob]}):
        agent = make("GRPO", model, **given)
        rows = prepared(agent)
        rows["log_prob"] = rows["log_prob"] + 0.6 * torch.randn(
            rows["log_prob"].shape, generator=torch.Generator().manual_seed(1)
        )
        if "reference_log_prob" in rows.keys():  # noqa: SIM118
            rows["reference_log_prob"] = rows["reference_log_prob"] + 0.3
        learned.append(gradient(agent, rows))
    assert (learned[0] - learned[1]).abs().max() > 1e-5


def test_all_arguments_of_grpo_are_tested_above():
    own = set(inspect.signature(GRPO.__init__).parameters) - {"self", "spec", "model", "shared"}
    assert own - {"credit", "gamma"} == set(KNOBS)  # those: test_turn_credit


def test_advantages_are_those_of_the_groups(model):
    rows = batch(make("GRPO", model))
    reward = rows["reward"]
    found = prepared(make("GRPO", model))["advantage"]
    torch.testing.assert_close(found, group_advantages(reward.flatten(), 4).view(3, 4))
    found = prepared(make("RLOO", model, kl_coef=0.0))["advantage"]
    torch.testing.assert_close(found, rloo_advantages(reward.flatten(), 4).view(3, 4))
    assert found.sum(1).abs().max() < 1e-5


def test_rloo_pays_for_the_distance_from_the_reference(model):
    agent = make("RLOO", model, kl_coef=0.5)
    rows = prepared(agent)
    rows["reference_log_prob"] = rows["reference_log_prob"] - 0.25 * rows["own"]
    paid = rows["reward"] - 0.5 * 0.25 * rows["length"]
    expected = rloo_advantages(paid.flatten(), 4).view(3, 4)
    torch.testing.assert_close(agent.advantages(rows)["advantage"], expected)


def test_reinforce_plus_plus_whitens_over_all_tokens(model):
    agent = make("REINFORCEPlusPlus", model, kl_coef=0.0)
    rows = prepared(agent)
    values = rows["advantage"][rows["own"]]
    assert float(values.mean()) == pytest.approx(0.0, abs=1e-5)
    assert float(values.std()) == pytest.approx(1.0, abs=1e-3)
    discounted = prepared(make("REINFORCEPlusPlus", model, kl_coef=0.0, gamma=0.5))
    assert (discounted["advantage"] - rows["advantage"]).abs().max() > 0.1
    grouped = prepared(make("REINFORCEPlusPlus", model, kl_coef=0.0, baseline="group"))
    first = [g[own] for g, own in zip(grouped["advantage"][0], rows["own"][0], strict=True)]
    assert all(bool((row == row[0]).all()) for row in first)


def test_the_critic_learns_what_completions_are_worth(model):
    agent = make("TokenPPO", model, kl_coef=0.0, critic_lr=3e-3, optimizer=torch.optim.Adam)
    optimizer = agent.configure_optimizers()
    assert [group["lr"] for group in optimizer.param_groups] == [1e-3, 3e-3]
    losses = []
    for _ in range(30):
        rows = prepared(agent)
        loss = agent.loss(rows)
        losses.append(float(loss.metrics["loss/value"]))
        optimizer.zero_grad()
        loss.value.backward()
        optimizer.step()
    assert losses[-1] < 0.3 * losses[0]


def test_the_critic_s_gradient_can_be_kept_from_the_model(model):
    for detach in (False, True):
        agent = make("TokenPPO", model, detach_critic=detach)
        rows = prepared(agent)
        rows["advantage"] = torch.zeros_like(rows["advantage"])
        gradient(agent, rows)
        flows = max(float(p.grad.abs().max()) for p in agent.backbone.parameters())
        assert (flows == 0.0) == detach


@pytest.mark.parametrize(
    "knob",
    [{"gae_lambda": 0.0}, {"gamma": 0.5}, {"kl_coef": 0.0}, {"clip_range": 0.01},
     {"clip_range_value": None}, {"value_coef": 0.0}, {"critic_hidden": ()}],
)  # fmt: skip
def test_every_knob_of_token_ppo_changes_what_is_learned(knob, model):
    learned = []
    for given in ({}, knob):
        agent = make("TokenPPO", model, **given)
        rows = prepared(agent)
        noise = torch.randn(rows["own"].shape, generator=torch.Generator().manual_seed(1))
        rows["log_prob"] = rows["log_prob"] + 0.6 * noise
        rows["value"] = rows["value"] + noise
        rows["reference_log_prob"] = rows["log_prob"] - 0.3
        rows.update(agent.advantages(rows))
        agent.zero_grad()
        agent.loss(rows).value.backward()
        learned.append(torch.cat([p.grad.flatten() for p in agent.backbone.parameters()]))
    assert (learned[0] - learned[1]).abs().max() > 1e-6


def off_policy(agent, **kwargs):
    """A batch that another policy wrote, far from the reference."""
    rows = prepared(agent, **kwargs)
    noise = torch.randn(rows["own"].shape, generator=torch.Generator().manual_seed(1))
    rows["log_prob"] = rows["log_prob"] + 0.6 * noise
    if "reference_log_prob" in rows.keys():  # noqa: SIM118
        rows["reference_log_prob"] = rows["log_prob"] - noise.abs()
    rows.update(agent.advantages(rows))
    return rows


@pytest.mark.parametrize(
    ("name", "knob"),
    [
        ("RLOO", {"clip_low": 0.01}),
        ("RLOO", {"clip_high": 50.0}),
        ("RLOO", {"kl_coef": 1.0}),
        ("REINFORCEPlusPlus", {"clip_low": 0.01}),
        ("REINFORCEPlusPlus", {"clip_high": 0.01}),
        ("REINFORCEPlusPlus", {"kl_coef": 1.0}),
        ("REINFORCEPlusPlus", {"baseline": "group"}),
        ("REINFORCEPlusPlus", {"gamma": 0.5}),
    ],
)
def test_every_knob_of_reinforce_s_relatives_changes_what_is_learned(name, knob, model):
    learned = []
    for given in ({}, knob):
        agent = make(name, model, **given)
        learned.append(gradient(agent, off_policy(agent)))
    assert (learned[0] - learned[1]).abs().max() > 1e-6


@pytest.mark.parametrize("knob", [{"beta": 0.5}, {"label_smoothing": 0.3}])
def test_every_knob_of_dpo_changes_what_is_learned(knob, model):
    learned = [gradient(agent, prepared(agent, g=2)) for agent in
               (make("DPO", model), make("DPO", model, **knob))]  # fmt: skip
    assert (learned[0] - learned[1]).abs().max() > 1e-6


@pytest.mark.parametrize("name", ["SFT", "DPO"])
@pytest.mark.parametrize("knob", ["gamma", "kl_coef"])
def test_imitation_has_no_knob_that_would_do_nothing(name, knob, model):
    assert knob not in inspect.signature(getattr(agents, name)).parameters
    with pytest.raises((ConfigurationError, TypeError), match=knob):
        make(name, model, **{knob: 0.5})


def test_imitation_keeps_what_was_judged_well(model):
    rows = batch(make("SFT", model))
    best = rows["reward"].argmax(1)
    for known in ({}, {"keep": "best"}):  # as it is unless told otherwise
        kept = prepared(make("SFT", model, **known))["own"].any(-1)
        assert kept.sum(1).tolist() == [1, 1, 1]
        assert kept.float().argmax(1).tolist() == best.tolist()
    kept = prepared(make("SFT", model, keep="all", min_reward=0.5))["own"].any(-1)
    assert kept.tolist() == (rows["reward"] >= 0.5).tolist()
    assert prepared(make("SFT", model, keep="all"))["own"].equal(rows["own"])


def test_imitation_of_nothing_learns_nothing(model):
    agent = make("SFT", model, min_reward=2.0)
    assert gradient(agent, prepared(agent)).abs().max() == 0.0


def test_dpo_makes_what_was_chosen_likelier(model):
    agent = make("DPO", model, beta=0.5)
    optimizer = agent.configure_optimizers()
    for step in range(20):
        rows = prepared(agent, g=2)
        loss = agent.loss(rows)
        if step == 0:
            assert float(loss.value) == pytest.approx(0.6931, abs=1e-4)
        optimizer.zero_grad()
        loss.value.backward()
        optimizer.step()
    assert float(loss.metrics["policy/accuracy"]) == 1.0
    assert float(loss.metrics["policy/margin"]) > 0.5
    held = agent.judged(rows)
    assert held["accuracy"].tolist() == [1.0] * 3
    assert float(held["loss"].mean()) < 0.5


@pytest.mark.parametrize("name", TOKEN_AGENTS)
def test_every_agent_is_copied_and_stored_with_its_arguments(name, model, tmp_path):
    agent = make(name, model, tune="lora", lora_rank=3)
    rows = prepared(agent, g=2, once=True)
    expected = agent.loss(rows).value
    torch.testing.assert_close(copy.deepcopy(agent).loss(rows).value, expected)
    assert agent.hparams["lora_rank"] == 3
    assert agent.act.__self__ is agent
    with pytest.raises(ConfigurationError, match="takes no actions"):
        agent.act(None)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tune": "frozen"}, "model.tune: frozen, so that nothing would be learned"),
        ({"max_length": 65}, "model.max_length: 65 is more than the 64 tokens"),
        ({"loss_type": "ppo"}, "loss_type='ppo': use one of grpo"),
        ({"importance": "word"}, "importance='word': use one of token"),
        ({"scale": "row"}, "model.scale='row': use one of group"),
        ({"kl_coef": -1.0}, "model.kl_coef must be at least 0"),
        ({"chunk": 0}, "model.chunk must be at least 1"),
        ({"max_grad_norm": 0.0}, "max_grad_norm"),
        ({"encoder_lr": 1e-4}, "encoder_lr"),
    ],
)
def test_wrong_arguments_are_named(given, message, model):
    with pytest.raises((ConfigurationError, TypeError), match=message):
        make("GRPO", model, **given)


def test_a_model_that_reads_by_one_half_is_refused(tmp_path):
    from llm_tiny import tiny_model

    with pytest.raises(ConfigurationError, match="give a causal"):
        make("GRPO", tiny_model("t5", tmp_path / "t5"))


def test_agents_of_tokens_are_agents():
    assert all(issubclass(cls, Agent) for cls in (GRPO, RLOO, SFT, REINFORCEPlusPlus, TokenPPO))
    assert SPEC.id == "prompts"
