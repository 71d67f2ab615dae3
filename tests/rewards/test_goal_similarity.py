"""A language model as judge: forms, goals, transitions, and what it remembers."""

from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from llm_tiny import tiny_model
from reward_tools import CPU, TEXT, ready, step, warmth
from training import make_trainer

from rl_lightning import PPO, LLMEncoder, RolloutDataModule
from rl_lightning.core.errors import ConfigurationError
from rl_lightning.core.types import EnvSpec
from rl_lightning.llm import Backbone, frozen_models, pool
from rl_lightning.rewards import GoalSimilarity, TextFunction, make_rewards

GOAL, NEAR, FAR = "go to the red ball", "You carry a blue key", "You see a wall 2 steps forward"
MISSION = EnvSpec(
    gym.spaces.Dict(
        {
            "text": gym.spaces.Text(80),
            "mission": gym.spaces.Text(80),
            "seen": gym.spaces.Box(0, 1, (2,)),
        }
    ),
    gym.spaces.Discrete(2),
    "Missions-v0",
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_model("bert", tmp_path_factory.mktemp("tiny") / "bert")


@pytest.fixture(scope="module")
def make(tiny):
    def build(spec=TEXT, num_envs=1, **arguments):
        return ready(GoalSimilarity(spec, model=tiny, layers=1, **arguments), num_envs)

    return build


@pytest.fixture(scope="module")
def cosine(tiny):
    """Of two texts, by the model alone."""
    backbone = Backbone(tiny, layers=1)

    @torch.no_grad()
    def of(a, b):
        ids, mask = backbone.tokens.pad(backbone.tokens([a, b]))
        x, y = pool(backbone(ids, mask), mask, "mean")
        return float(torch.nn.functional.cosine_similarity(x, y, dim=0))

    return of


def test_the_similarity_is_the_cosine_of_pooled_texts(make, cosine):
    texts = (NEAR, FAR, GOAL)
    got = make(num_envs=3, goal=GOAL)(step(texts, texts))
    assert got == pytest.approx([cosine(text, GOAL) for text in texts], abs=1e-5)
    assert got[2] == pytest.approx(1.0, abs=1e-5)
    assert got[0] < 0.99


def test_of_several_goals_the_nearest_counts(make, cosine):
    got = make(num_envs=2, goal=[GOAL, NEAR])(step((FAR, NEAR), (FAR, NEAR)))
    assert got == pytest.approx([max(cosine(FAR, GOAL), cosine(FAR, NEAR)), 1.0], abs=1e-5)


def test_where_a_step_leads_to_is_judged_and_not_where_it_began(make):
    reward = make(goal=GOAL)
    assert reward(step((FAR,), (GOAL,)))[0] > 0.999 > reward(step((GOAL,), (FAR,)))[0]


def test_goals_of_the_environments_own(make, cosine):
    reward = make(MISSION, num_envs=2)
    obs = {"text": (FAR, NEAR), "mission": (GOAL, NEAR), "seen": np.zeros((2, 2))}
    assert reward(step(obs, obs)) == pytest.approx([cosine(FAR, GOAL), 1.0], abs=1e-5)
    other = make(MISSION, num_envs=2, entry="mission", goal_entry="text")
    assert other(step(obs, obs)) == pytest.approx([cosine(FAR, GOAL), 1.0], abs=1e-5)


def test_threshold_pays_one_or_nothing(make, cosine):
    like = cosine(FAR, GOAL)
    for threshold, pays in ((like - 0.01, 1.0), (like + 0.01, 0.0)):
        reward = make(goal=GOAL, form="threshold", threshold=threshold)
        assert [reward(step((FAR,), (FAR,)))[0] for _ in range(2)] == [pays, pays]


def test_once_pays_each_goal_once_an_episode(make):
    reward = make(goal=[GOAL, NEAR], form="once")
    paid = []
    for text, started in ((FAR, 1), (GOAL, 0), (GOAL, 0), (NEAR, 0), (GOAL, 0), (GOAL, 1)):
        paid.append(bool(reward(step((FAR,), (text,), started=[started]))[0]))
    assert paid == [False, True, False, True, False, True]


def test_once_is_kept_for_each_environment_and_not_spent_on_resets(make):
    reward = make(num_envs=2, goal=GOAL, form="once")
    assert list(reward(step((FAR, FAR), (GOAL, GOAL), valid=[1, 0]))) == [True, False]
    assert list(reward(step((FAR, FAR), (GOAL, GOAL)))) == [False, True]


def test_once_an_episode_survives_resuming(make):
    first, second = make(goal=GOAL, form="once"), make(goal=GOAL, form="once")
    assert first(step((FAR,), (GOAL,), started=[1]))[0]
    second.load_episode_state(first.episode_state())
    assert not second(step((FAR,), (GOAL,)))[0]
    assert make(goal=GOAL, form="once")(step((FAR,), (GOAL,)))[0]


def test_transitions_are_told_by_the_template(make, cosine):
    words = {"of": "transition", "goal": GOAL, "template": "was {before} and is {after}"}
    (got,) = make(**words)(step((NEAR,), (FAR,)))
    assert got == pytest.approx(cosine(f"was {NEAR} and is {FAR}", GOAL), abs=1e-5)
    # Braces in a text are text.
    make(**words)(step(("{x}",), ("{",)))
    paid = make(**{**words, "form": "threshold", "threshold": got - 0.01})
    assert list(paid(step((NEAR,), (FAR,)))) == [True]


def test_by_sentences_the_likest_one_counts(make, cosine):
    text = f"{FAR}. {GOAL}!  Who? 3.5 steps"
    alone = [cosine(one, "who") for one in (f"{FAR}.", f"{GOAL}!", "Who?", "3.5 steps")]
    reward = make(num_envs=3, goal="who", sentences=True)
    got = reward(step((FAR,) * 3, (text, f"{GOAL}\n{FAR}", "")))
    two, none = max(cosine(GOAL, "who"), cosine(FAR, "who")), cosine("", "who")
    assert got == pytest.approx([max(alone), two, none], abs=1e-5)
    assert abs(make(goal="who")(step((FAR,), (text,)))[0] - got[0]) > 1e-4


def test_by_sentences_each_goal_has_its_own(make):
    both = f"{NEAR}.\n{FAR}.\n{GOAL}."
    reward = make(goal=[f"{GOAL}.", f"{NEAR}."], form="once", sentences=True)
    assert [bool(reward(step((FAR,), (t,)))[0]) for t in (f"{NEAR}.", both, both)] == [1, 1, 0]
    whole = make(goal=[f"{GOAL}.", f"{NEAR}."], form="once")
    assert not whole(step((FAR,), (both,)))[0]


def test_by_sentences_of_transitions_and_of_environments_own_goals(make, cosine):
    told = make(goal=GOAL, of="transition", template="{before}. {after}", sentences=True)
    assert told(step((GOAL,), (FAR,)))[0] == pytest.approx(
        max(cosine(f"{GOAL}.", GOAL), cosine(FAR, GOAL)), abs=1e-5
    )
    own = make(MISSION, num_envs=2, sentences=True)
    obs = {"text": (f"{FAR}.\n{NEAR}", NEAR), "mission": (GOAL, NEAR), "seen": np.zeros((2, 2))}
    wanted = [max(cosine(f"{FAR}.", GOAL), cosine(NEAR, GOAL)), 1.0]
    assert own(step(obs, obs)) == pytest.approx(wanted, abs=1e-5)


def test_sentences_are_read_once_whatever_text_they_stand_in(make):
    reward, read = make(num_envs=2, goal=GOAL, sentences=True), []
    plain = reward.embedder._embed
    reward.embedder._embed = lambda texts: read.extend(texts) or plain(texts)
    reward(step((FAR,) * 2, ("A b. C d.", "C d. A b.")))
    reward(step((FAR,) * 2, ("A b. E f.", "E f. E f.")))
    assert read == ["A b.", "C d.", "E f."]


def test_by_sentences_batched_is_single(make):
    texts = (f"{FAR}. {NEAR}.", GOAL, f"{NEAR}. {GOAL}. {FAR}.")
    together = make(num_envs=3, goal=[GOAL, NEAR], sentences=True)(step(texts, texts))
    one = make(goal=[GOAL, NEAR], sentences=True)
    assert together == pytest.approx([one(step((t,), (t,)))[0] for t in texts], abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"form": "often"}, r"form must be one of \('dense', 'threshold', 'once'\), not 'often'"),
        ({"of": "state"}, "of must be one of"),
        ({"threshold": 1.5}, "threshold must be between -1 and 1, not 1.5"),
        ({"goal": ""}, "goal must be a text or a list of texts, not ''"),
        ({"goal": []}, "goal must be a text or a list of texts"),
        ({"goal": [3]}, "goal must be a text or a list of texts"),
        ({"goal": 3}, "goal must be a text or a list of texts, not 3"),
        ({"goal": None}, "goal_entry: no entry 'mission' in observations of Words-v0; it has none"),
        ({"entry": "text"}, "entry: no entry 'text' in observations of Words-v0; it has none"),
        ({"form": "once", "shaping": "potential"}, "potential needs a function of the state"),
        ({"of": "transition", "shaping": "potential"}, "which of: transition is not"),
        ({"shaping": "reward"}, "shaping must be 'none' or 'potential', not 'reward'"),
        ({"of": "transition", "template": "{before}"}, "template must hold {after}"),
        ({"of": "transition", "template": "{after} {now}"}, "template must hold {after}"),
        ({"pooling": "max"}, "pooling='max': use one of"),
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"cache_size": -1}, "cache_size must be at least 0, not -1"),
        ({"model": "no-such-model"}, "no-such-model"),
    ],
)
def test_wrong_arguments_are_told(make, tiny, arguments, told):
    with pytest.raises(ConfigurationError, match=told):
        GoalSimilarity(TEXT, **{"goal": GOAL, "model": tiny, "layers": 1, **arguments})


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"entry": "words"}, "entry: no entry 'words' .* it has 'mission', 'seen', 'text'"),
        ({"goal_entry": "aim"}, "goal_entry: no entry 'aim' .* it has 'mission', 'seen', 'text'"),
        ({"entry": "seen"}, "reads text, but the entry 'seen' of Missions-v0 is Box"),
        ({"goal": GOAL}, "observations of Missions-v0 hold 2 .* name one of them, entry: mission"),
    ],
)
def test_unknown_entries_name_those_there_are(make, arguments, told):
    with pytest.raises(ConfigurationError, match=told):
        make(MISSION, **arguments)


def test_vectors_are_no_text(make):
    spec = EnvSpec(gym.spaces.Box(-1, 1, (2,)), gym.spaces.Discrete(2), "Vectors-v0")
    with pytest.raises(ConfigurationError, match=r"Vectors-v0 hold no .* wrap .* in Describe"):
        make(spec, goal=GOAL)


def test_texts_are_read_once_and_remembered(make):
    reward = make(num_envs=3, goal=GOAL)
    read = []
    plain = reward.embedder._embed
    reward.embedder._embed = lambda texts: read.append(texts) or plain(texts)
    for _ in range(2):
        reward(step((FAR,) * 3, (FAR, NEAR, FAR)))
    assert read == [[FAR, NEAR]]
    assert reward.metrics()["cache_hit_rate"] == pytest.approx(4 / 7)  # the goal is a lookup too
    assert reward.metrics() == {}
    other = make(goal=GOAL)
    other.load_state_dict(reward.state_dict())
    other.embedder._embed = None
    assert other(step((FAR,), (NEAR,)))[0] == reward(step((FAR,) * 3, (NEAR,) * 3))[0]


def test_what_another_model_remembers_is_not_taken(make, tiny):
    reward = make(goal=GOAL)
    reward(step((FAR,), (NEAR,)))
    other = ready(GoalSimilarity(TEXT, goal=GOAL, model=tiny, layers=2))
    with pytest.warns(UserWarning, match="belong to another model"):
        other.load_state_dict(reward.state_dict())
    assert len(other.embedder.cache) == 0


def test_judges_share_a_model_with_each_other_and_with_the_agent(tiny):
    makers = [
        partial(GoalSimilarity, goal=GOAL, model=tiny),
        partial(GoalSimilarity, goal=FAR, model=tiny),
        partial(GoalSimilarity, goal=FAR, model=tiny, layers=1),
    ]
    agent = PPO(TEXT, encoder=partial(LLMEncoder, model=tiny))
    one, two, three = make_rewards(makers, TEXT, 1, 0.9, CPU, frozen_models(agent)).values()
    assert one.embedder is two.embedder is not three.embedder
    assert one.embedder.backbone.model is agent.policy.encoder.backbone.model
    assert three.embedder.backbone.model is not one.embedder.backbone.model
    # One of them speaks for what they remember together.
    assert [bool(r.state_dict()) for r in (one, two, three)] == [True, False, True]
    alone = make_rewards(makers, TEXT, 1, 0.9, CPU)["goal_similarity"]
    assert alone.embedder.backbone.model is not one.embedder.backbone.model
    assert not frozen_models(PPO(TEXT, encoder=partial(LLMEncoder, model=tiny, tune="lora")))


def test_a_function_of_texts(make):
    reward = ready(TextFunction(MISSION, function=warmth, entry="text"), 2)
    obs = {"text": ("eel", "ox"), "mission": ("", ""), "seen": np.zeros((2, 2))}
    assert list(reward(step(obs, obs))) == pytest.approx([2 / 3, 0.0])
    shaped = ready(TextFunction(TEXT, function=warmth, shaping="potential"), 1, gamma=0.5)
    assert shaped(step(("xe",), ("eee",)))[0] == pytest.approx(0.5 * 1.0 - 0.5)
    with pytest.raises(ConfigurationError, match="function must be a function"):
        TextFunction(TEXT, function="warmth")  # type: ignore[arg-type]


@pytest.mark.pretrained
def test_minilm_knows_where_the_agent_stands():
    """The words that a user types; and which sentence is nearer, a real model knows."""
    rewards = [partial(GoalSimilarity, goal="You stand at the exit.", weight=0.1, layers=2)]
    data = RolloutDataModule(
        "TextMaze-v0", num_envs=2, rollout_steps=8, total_frames=16, rewards=rewards, seed=1
    )
    make_trainer().fit(PPO(data.spec, encoder=partial(LLMEncoder, layers=2)), data)
    judge = ready(GoalSimilarity(TEXT, goal="You stand at the exit."), 2)
    near, far = judge(step(("", ""), ("You are standing at the exit.", "It is a green apple.")))
    assert near > 0.9 > 0.4 > far
