"""What others call an environment that is spoken with, as one of Gymnasium's."""

import gymnasium as gym
import pytest
from talking import Arena, Copying, Guess, Tools

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.envs import as_text_env
from rl_lightning.envs.conversations import make_text_env


def test_environments_of_gymnasium_stay_as_they_are():
    env = Copying()
    assert as_text_env(env) is env
    made = make_text_env("TextMaze-v0", {"size": 4}, [{"TimeLimit": {"max_episode_steps": 2}}])
    assert isinstance(made, gym.wrappers.TimeLimit)
    made = make_text_env("talking:copying", {"turns": 7}, ["OrderEnforcing"])
    assert made.unwrapped.turns == 7
    assert isinstance(made, gym.wrappers.OrderEnforcing)


def test_reset_and_step_are_enough():
    env = as_text_env(Guess())
    assert env.reset(seed=14) == ("ask", {})
    assert env.step("3") == ("no", 0.0, False, False, {})
    assert env.step("4") == ("yes", 1.0, True, False, {})


def test_texts_may_be_put_into_and_taken_out_of_objects():
    env = as_text_env(Guess(), say=lambda text: text[-1], read=str.upper)
    assert env.reset(seed=4)[0] == "ASK"
    assert env.step("I say 4")[:3] == ("YES", 1.0, True)


def test_tuples_are_taken_as_they_are_in_use():
    class Four:
        def reset(self):
            return "begin", {"goal": "go"}

        def step(self, action):
            return "next", 2, True, {"success": True}

    class Five(Four):
        def step(self, action):
            return "next", 2, False, True, {}

    assert as_text_env(Four()).reset(seed=3) == ("begin", {"goal": "go"})
    assert as_text_env(Four()).step("") == ("next", 2.0, True, False, {"success": True})
    assert as_text_env(Five()).step("") == ("next", 2.0, False, True, {})


def test_a_game_of_one_player_says_at_its_end_what_it_was_worth():
    env = as_text_env(Arena())
    assert env.reset(seed=9)[0] == "game 9"
    assert env.step("[up]") == ("1 left", 0.0, False, False, {})
    assert env.step("[down]") == ("0 left", 1.0, True, False, {})


def test_public_methods_are_tools():
    env = as_text_env(Tools())
    first, _ = env.reset(seed=0)
    assert first == "add(count: int) -> str: Add to the counter.\nraise the counter to 3"
    call = '<tool_call>{"name": "add", "arguments": {"count": %s}}</tool_call>'
    assert env.step(f"I add. {call % 1}") == ("now 1", 1.0, False, False, {})
    assert env.step(call % 1 + call % 1) == ("now 2\nnow 3", 2.0, True, False, {})


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        ('{"name": "_private", "arguments": {}}', "error: there is no tool '_private', but add"),
        ('{"name": "reset"}', "error: there is no tool 'reset', but add"),
        ('{"name": "add", "arguments": {"much": 1}}', "error: TypeError"),
        ("add 1", "error: JSONDecodeError"),
        ("[]", "error: TypeError"),
    ],
)
def test_what_is_wrong_with_a_call_is_answered(said, answer):
    env = as_text_env(Tools())
    env.reset()
    text, reward, over, _, _ = env.step(f"<tool_call>{said}</tool_call>")
    assert text.startswith(answer)
    assert (reward, over) == (0.0, False)


def test_a_turn_without_a_call_is_the_last():
    class Asked(Tools):
        def get_reward(self):
            return 7.0 * self.reward

    env = as_text_env(Asked())
    env.reset()
    assert "get_reward" not in env.tools
    env.step('<tool_call>{"name": "add", "arguments": {"count": 1}}</tool_call>')
    assert env.step("That is all.") == ("", 0.0, True, False, {})
    env.reset()
    assert env.step('<tool_call>{"name": "add", "arguments": {"count": 1}}</tool_call>')[1] == 7.0


def test_others_are_refused():
    with pytest.raises(ConfigurationError, match="int is no environment to speak with"):
        as_text_env(3)
    with pytest.raises(ConfigurationError, match=r"talking:failing.*unexpected keyword"):
        make_text_env("talking:failing", {"speed": 3})


def test_a_reset_that_nobody_can_look_into_is_given_no_seed():
    class Compiled(Guess):
        reset = type("Builtin", (), {"__call__": lambda self: "begin", "__signature__": 3})()

    env = as_text_env(Compiled())
    assert not env.takes_seed
    assert env.reset(seed=3) == ("begin", {})
    assert as_text_env(Guess()).takes_seed
    assert as_text_env(Tools()).takes_seed
