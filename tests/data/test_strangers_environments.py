"""Environments that somebody else has written, and what is wrong with them."""

import math

import pytest
import talking
from talking import Copying
from token_tools import characters, make
from training import fit, make_trainer

from rl_lightning import EpisodeDataModule
from rl_lightning.core.errors import ConfigurationError, RunError
from rl_lightning.data.collect.conversation import Conversation, Conversations
from rl_lightning.envs import as_text_env


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return characters(tmp_path_factory.mktemp("model") / "characters", positions=128)


def episodes(env, **kwargs):
    known = {"template": "{observation}:", "max_new_tokens": 1, "prompts_per_step": 2}
    known |= {"group_size": 2, "steps_per_epoch": 1, "total_prompts": 4, "max_turns": 2}
    return EpisodeDataModule(env, **{**known, **kwargs})


def begun(made):
    conversation = Conversation(as_text_env(made))
    conversation.reset(3)
    return conversation


def test_a_function_that_returns_one_object_is_refused(model):
    with pytest.raises(ConfigurationError, match="two copies of 'Guess' are one object"):
        fit(make("GRPO", model), episodes("talking:one"))
    env = Copying()
    copies = Conversations(lambda: Conversation(env, ["a", "b"]))
    assert len(copies.take(1)) == 1
    with pytest.raises(ConfigurationError, match="make a new one each time"):
        copies.take(2)


def test_a_reset_without_a_seed_is_told_of_once(model):
    with pytest.warns(UserWarning, match="reset of 'Alike' takes no seed") as told:
        make_trainer(limit_val_batches=1.0).fit(make("GRPO", model), episodes("talking:alike"))
    assert sum("takes no seed" in str(one.message) for one in told) == 1
    data = episodes("talking:guess")
    assert data.copies(False).take(2)
    assert not data._told_unseeded


@pytest.mark.parametrize(
    ("returned", "says"),
    [
        (("b", 1.0, True), "done, not a tuple of 3"),
        ("b", "done, not str 'b'"),
        (None, "done, not None"),
        (("b", 1.0, True, "fine"), "info that step returns must be a dict, not str 'fine'"),
        (("b", "much", True, {}), "the reward must be one number, not 'much'"),
        (("b", math.nan, True, {}), "the reward is nan, no finite number in float32"),
        (("b", 1e39, True, {}), r"the reward is 1e\+39, no finite number in float32"),
        (("b", -math.inf, True, {}), "the reward is -inf, no finite number in float32"),
    ],
)
def test_what_step_must_return_is_told_by_the_name_of_its_class(returned, says):
    class Mine(talking.Alike):
        def step(self, action):
            return returned

    with pytest.raises(RunError, match=rf"environment 'Mine': .*{says}"):
        begun(Mine()).say("a")


def test_a_reset_that_returns_a_pair_of_texts_has_no_observation():
    class Mine(talking.Alike):
        def reset(self):
            return "a", "b"

    with pytest.raises(RunError, match="environment 'Mine': observation must be a text"):
        begun(Mine())


def test_rewards_that_add_up_to_too_much_are_the_environment_s(model):
    class Mine(talking.Alike):
        def step(self, action):
            return "b", 3e38, False, {}

    conversation = begun(Mine())
    conversation.say("a")
    with pytest.raises(RunError, match=r"'Mine': rewards add up to 6e\+38"):
        conversation.say("a")
    with pytest.raises(RunError, match=r"'Alike': what an episode .* data\.env_reward_weight"):
        fit(make("GRPO", model), episodes("talking:alike", env_reward_weight=1e39))


def test_failures_name_the_class_that_failed():
    class Mine(talking.Alike):
        def step(self, action):
            raise KeyError("lost")

    with pytest.raises(RunError, match="environment 'Mine' raised in step: KeyError: 'lost'"):
        begun(Mine()).say("a")

    class Tool(talking.Tools):
        def get_reward(self):
            return "much"

    with pytest.raises(ConfigurationError, match="environment 'Tool' raised in reset"):
        begun(Tool())
