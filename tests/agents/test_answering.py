"""Agents of tokens answer texts with texts, outside of training."""

import pytest
import torch
from token_tools import characters, make

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.llm.generators import TransformersGenerator
from rl_lightning.llm.sampling import Sampling


@pytest.fixture(scope="module")
def agent(tmp_path_factory):
    return make("GRPO", characters(tmp_path_factory.mktemp("model") / "characters"))


def written(agent, text, sampling):
    tokens = agent.backbone.tokens
    with torch.no_grad():
        out = TransformersGenerator()(agent.backbone, tokens.whole([text]), 1, sampling)
    return tokens.tokenizer.decode(out.ids[0, : out.length[0]], skip_special_tokens=True)


def test_one_text_and_several(agent):
    texts = ["12:", "3 4 5 6:", "a="]
    one = [agent.predict(text, max_new_tokens=5) for text in texts]
    assert one == [written(agent, text, Sampling(5, 0.0)) for text in texts]
    assert agent.predict(texts, max_new_tokens=5) == one
    assert agent.predict(tuple(texts), max_new_tokens=5) == one
    assert all(len(text) <= 3 for text in agent.predict(texts, max_new_tokens=3))


def test_greedy_unless_it_is_to_explore(agent):
    assert len({agent.predict("12:", max_new_tokens=8) for _ in range(5)}) == 1
    torch.manual_seed(0)
    sampled = [agent.predict("12:", max_new_tokens=8, explore=True) for _ in range(5)]
    assert len(set(sampled)) > 1
    torch.manual_seed(0)
    assert [agent.predict("12:", max_new_tokens=8, explore=True) for _ in range(5)] == sampled


def test_stop_texts_end_a_completion(agent):
    whole = agent.predict("12:", max_new_tokens=8)
    stop = whole[2]
    assert agent.predict("12:", max_new_tokens=8, stop=[stop]) == whole[: whole.index(stop) + 1]


def test_the_mode_stays_and_nothing_has_a_gradient(agent):
    agent.train()
    agent.predict("12:", max_new_tokens=2)
    assert agent.training
    assert agent.backbone.training
    assert all(p.grad is None for p in agent.parameters())


@pytest.mark.parametrize("prompts", [[], 5, None, [1], b"12:", ["a", None], {"prompt": "a"}])
def test_what_is_no_text_is_named(agent, prompts):
    with pytest.raises(ConfigurationError, match="prompts: give a text or a list of texts, not"):
        agent.predict(prompts)


def test_what_is_too_long_is_named(agent):
    with pytest.raises(ConfigurationError, match="tokens"):
        agent.predict("1" * 100)
