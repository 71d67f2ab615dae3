"""Adapters on a mixture of experts: one tensor holds all experts, and no layer its weight."""

import warnings

import pytest
import torch
from token_tools import characters, make, prompts
from training import fit

from rl_lightning.llm.export import save_merged
from rl_lightning.llm.merging import merged
from rl_lightning.llm.tune import name_without_adapters

IDS = torch.tensor([[3, 4, 5, 6, 7], [9, 8, 7, 6, 5]])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from transformers import AutoTokenizer, Qwen3MoeConfig, Qwen3MoeForCausalLM

    folder = characters(tmp_path_factory.mktemp("model") / "experts")
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=len(AutoTokenizer.from_pretrained(folder)),
        hidden_size=32,
        intermediate_size=64,
        moe_intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    Qwen3MoeForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def agent(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's own
        made = make(
            "GRPO", model, tune="lora", optimizer=lambda groups: torch.optim.Adam(groups, lr=1e-2)
        )
    return fit(made, prompts(passes=2), log_every_n_steps=1)


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def test_the_sampler_is_the_learner(agent):
    assert float(agent.trainer.callback_metrics["policy/sampler_gap"]) < 1e-5


def test_it_is_merged_for_a_while(agent):
    model = agent.backbone.model
    before, weights = logits(model), dict(model.named_parameters())
    with model.disable_adapter():
        assert (logits(model) - before).abs().max() > 0.1  # adapters have learned
    with merged(agent.backbone):
        torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-4)
    assert all(weights[name] is parameter for name, parameter in model.named_parameters())
    assert torch.equal(logits(model), before)


def test_weights_are_called_as_without_adapters(agent, model, tmp_path):
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(model)
    own = {name_without_adapters(name) for name, _ in agent.backbone.model.named_parameters()}
    assert {name for name, _ in plain.named_parameters()} <= own
    save_merged(agent.backbone, tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(logits(loaded), logits(agent.backbone.model), rtol=1e-4, atol=1e-4)
