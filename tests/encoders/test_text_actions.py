"""What a language model says of actions in words: stored, remembered, batched."""

from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from llm_tiny import tiny_model
from tensordict import TensorDict
from text_probes import LINES, MOST, Listed, Named

from rl_lightning import (
    DQN,
    ActorCritic,
    EnvSpec,
    ScoringPolicy,
    ScoringQNetwork,
    TextActionEncoder,
)
from rl_lightning.core.errors import ConfigurationError, RunError
from rl_lightning.llm.rows import make_rows
from rl_lightning.llm.scoring import score
from rl_lightning.policies.scoring import normalized

NAMES = ["north", "go to the east"]
TEXTS = ("There is a wall to the north.", "You see a grey box", "There is a wall to the north.")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {kind: tiny_model(kind, root / kind) for kind in ("llama", "gpt2", "t5", "bert")}


def spec_of(env, names=None):
    return EnvSpec(env.observation_space, env.action_space, "Probe-v0", names)


def fixed(model, tune="frozen", **kwargs):
    kwargs = {"actions": NAMES, "max_length": 48, "standardize": False, **kwargs}
    return TextActionEncoder(spec_of(Named()), model, tune, **kwargs).eval()


def listed(model, tune="frozen", **kwargs):
    kwargs = {"max_length": 48, "max_actions_length": 90, "standardize": False, **kwargs}
    return TextActionEncoder(spec_of(Listed()), model, tune, **kwargs).eval()


def states(*numbers):
    """Observations of Listed as a vector environment gives them."""
    env = Listed()
    rows = [env.reset(seed=number)[0] for number in numbers]
    return {
        "observation": tuple(row["observation"] for row in rows),
        "actions": tuple(row["actions"] for row in rows),
        "clock": np.stack([row["clock"] for row in rows]),
    }


def expected(encoder, text, names):
    """Scores by the functions below the encoder, of one state."""
    prompt = encoder.choices.prompter.prompts([f"{text}\nAction:"])
    own = [encoder.choices.prompter.candidate(name) for name in names]
    with torch.no_grad():
        rows = make_rows(prompt, [own], 0)
        return score(encoder.backbone, rows, len(names), "pairs")


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5"])
@pytest.mark.parametrize("tune", ["frozen", "lora", "full"])
def test_it_says_what_the_model_says(models, kind, tune):
    encoder = fixed(models[kind], tune)
    with torch.no_grad():
        scored = encoder.score(encoder.preprocess(TEXTS))
    for n, text in enumerate(TEXTS):
        own = expected(encoder, text, NAMES)
        torch.testing.assert_close(scored.log_prob[n], own.log_prob[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(scored.features[n], own.hidden[0], rtol=1e-5, atol=1e-5)
    assert scored.words.tolist() == [[1, 4]] * 3
    lengths = [len(encoder.choices.prompter.candidate(name)) for name in NAMES]
    assert scored.tokens.tolist() == [lengths] * 3
    assert scored.exists.all()


@pytest.mark.parametrize("tune", ["frozen", "lora"])
def test_actions_of_every_state_its_own(models, tune):
    encoder = listed(models["llama"], tune)
    obs = states(1, 2, 3, 4)
    with torch.no_grad():
        x = encoder.preprocess(obs)
        scored = encoder.score(x)
    for n in range(4):
        names = obs["actions"][n].split("\n")
        own = expected(encoder, f"{obs['observation'][n]}", names)
        assert scored.exists[n].tolist() == [k < len(names) for k in range(MOST)]
        torch.testing.assert_close(
            scored.log_prob[n, : len(names)], own.log_prob[0], rtol=1e-5, atol=1e-5
        )
        assert (scored.log_prob[n, len(names) :] == 0).all()
        assert scored.words[n, : len(names)].tolist() == [len(t.split()) for t in names]


@pytest.mark.parametrize("tune", ["frozen", "lora"])
def test_features_are_of_the_last_token_or_the_mean_of_all(models, tune):
    last = fixed(models["llama"], tune)
    mean = fixed(models["llama"], tune, pooling="mean")
    with torch.no_grad():
        a, b = (e.score(e.preprocess(TEXTS)) for e in (last, mean))
    torch.testing.assert_close(a.log_prob, b.log_prob)
    assert (a.features - b.features).abs().max() > 1e-3
    assert last._fingerprint() != mean._fingerprint()
    if tune == "frozen":
        assert last.cache is not mean.cache


@pytest.mark.parametrize("make", [fixed, listed])
@pytest.mark.parametrize("tune", ["frozen", "lora"])
def test_batched_is_single_and_what_is_stored_has_one_shape(models, make, tune):
    encoder = make(models["llama"], tune)
    obs = TEXTS if make is fixed else states(1, 2, 3)
    with torch.no_grad():
        together = encoder.preprocess(obs)
        scored = encoder.score(together)
        for n in range(3):
            row = obs[n : n + 1] if make is fixed else {k: v[n : n + 1] for k, v in obs.items()}
            alone = encoder.preprocess(row)
            assert {k: v.shape[1:] for k, v in alone.items()} == {
                k: v.shape[1:] for k, v in together.items()
            }
            single = encoder.score(alone)
            for a, b in zip(single, scored, strict=True):
                torch.testing.assert_close(a, b[n : n + 1], rtol=1e-5, atol=2e-5)
    as_tensordict = encoder.score(TensorDict(dict(together), batch_size=[3]))
    torch.testing.assert_close(as_tensordict.log_prob, scored.log_prob)


def test_a_frozen_model_reads_each_state_once(models, monkeypatch):
    encoder = fixed(models["llama"])
    read = []
    inner = encoder._read_frozen
    monkeypatch.setattr(encoder, "_read_frozen", lambda t: [read.extend(t), inner(t)][1])
    first = encoder.preprocess(TEXTS)
    again = encoder.preprocess(TEXTS[::-1])
    assert len(read) == 2
    assert torch.equal(first["log_prob"], again["log_prob"].flip(0))  # cached = fresh
    assert encoder.metrics()["llm/cache_size"] == 2


def test_the_same_text_with_other_actions_is_another_state(models):
    encoder = listed(models["llama"])
    obs = {
        "observation": ("a wall", "a wall"),
        "actions": (f"{LINES[0]}\n{LINES[1]}", f"{LINES[1]}\n{LINES[0]}"),
    }
    scored = encoder.score(encoder.preprocess(obs))
    assert len(encoder.cache) == 2
    torch.testing.assert_close(scored.log_prob[0, :2], scored.log_prob[1, :2].flip(0))


def test_what_is_remembered_is_saved_and_taken_back(models):
    encoder, other = fixed(models["llama"]), fixed(models["llama"])
    before = encoder.preprocess(TEXTS)
    other.load_collection_state(encoder.collection_state())
    other._read_frozen = lambda texts: pytest.fail("it remembers them")
    after = other.preprocess(TEXTS)
    assert all(torch.equal(before[key], after[key]) for key in before)
    changed = fixed(models["llama"], template="{observation}\nDo:")
    with pytest.warns(UserWarning, match="belongs to another model, or to other .*`template`"):
        changed.load_collection_state(encoder.collection_state())


@pytest.mark.parametrize(
    "change",
    [
        {"template": "{observation}\nDo:"},
        {"actions": ["south", "go to the east"]},
        {"layers": 2},
        {"max_length": 9},
        {"truncation_side": "right", "max_length": 9},
    ],
)
@pytest.mark.filterwarnings("ignore:a text of")
def test_every_argument_about_the_prompt_matters(models, change):
    base = {"max_length": 9} if "truncation_side" in change else {}
    with torch.no_grad():
        one = fixed(models["llama"], **base)
        other = fixed(models["llama"], **change)
        a = one.score(one.preprocess(TEXTS)).log_prob
        b = other.score(other.preprocess(TEXTS)).log_prob
    assert (a - b).abs().max() > 1e-3


def test_the_ways_to_score_agree(models):
    found = []
    for method in ("auto", "packed", "cached", "pairs"):
        encoder = listed(models["llama"], "lora", method=method)
        assert encoder.method == ("packed" if method == "auto" else method)
        found.append(encoder.score(encoder.preprocess(states(1, 2, 3))).log_prob)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-5, atol=2e-5)


def test_entries_in_the_template_and_those_never_read(models):
    encoder = listed(models["llama"], template="{actions}? {observation} Do:")
    assert encoder.unread() == {("clock",)}
    (key,) = encoder.choices.keys({"observation": ["x"], "actions": ["a\nb"], "clock": [0]})
    assert key.startswith("a, b? x Do:")
    assert fixed(models["llama"], template="{actions}: {observation} Do:").choices.keys(["x"]) == [
        "north, go to the east: x Do:"
    ]


def test_the_environment_may_name_its_actions(models):
    encoder = TextActionEncoder(spec_of(Named(), ["up", "down"]), models["llama"])
    assert encoder.choices.names == ["up", "down"]
    given = TextActionEncoder(spec_of(Named(), ["up", "down"]), models["llama"], actions=NAMES)
    assert given.choices.names == NAMES


def test_candidates_are_known_by_their_tokens(models):
    for make, obs in ((fixed, TEXTS[:2]), (listed, states(5, 6))):
        for tune in ("frozen", "lora"):
            encoder = make(models["llama"], tune)
            x = encoder.preprocess(obs)
            vectors = encoder.candidate_vectors(x)
            names = NAMES if make is fixed else obs["actions"][1].split("\n")
            for k, name in enumerate(names):
                ids = torch.tensor(encoder.choices.prompter.candidate(name))
                torch.testing.assert_close(vectors[1, k], encoder.backbone.embeddings(ids).mean(0))
            assert (vectors[1, len(names) :] == 0).all()


def test_features_are_standardised_by_what_was_observed(models):
    encoder = fixed(models["llama"], standardize=True)
    encoder.observe(TEXTS[:2])
    x = encoder.preprocess(TEXTS[:2])
    assert abs(float(x["features"].mean())) < 1e-5
    assert 0.9 < float(x["features"].std(correction=0)) < 1.1
    raw = encoder.preprocess_raw(TEXTS[:2])
    assert torch.equal(encoder.standardized(raw)["features"], x["features"])
    assert torch.equal(raw["log_prob"], x["log_prob"])


def test_a_score_by_its_length(models):
    encoder = fixed(models["llama"])
    scored = encoder.score(encoder.preprocess(TEXTS))
    assert torch.equal(normalized(scored, "sum"), scored.log_prob)
    tokens = torch.tensor([len(encoder.choices.prompter.candidate(name)) for name in NAMES])
    torch.testing.assert_close(normalized(scored, "token"), scored.log_prob / tokens)
    torch.testing.assert_close(
        normalized(scored, "word"), scored.log_prob / torch.tensor([1.0, 4.0])
    )


@pytest.mark.parametrize("normalize", ["sum", "token", "word"])
def test_a_policy_without_head_is_the_models_own(models, normalize):
    policy = ScoringPolicy(
        spec_of(Named()),
        partial(TextActionEncoder, model=models["llama"], actions=NAMES, max_length=48),
        normalize=normalize,
        temperature=3.0,
        head=False,
    )
    x = policy.encoder.preprocess(TEXTS)
    scored = policy.encoder.score(x)
    out = policy.inspect(x)
    torch.testing.assert_close(
        out["probabilities"], (normalized(scored, normalize) / 3.0).softmax(-1)
    )
    assert torch.equal(out["log_probs"], scored.log_prob)


def test_a_new_head_changes_nothing_and_learns(models):
    encoder = partial(TextActionEncoder, model=models["llama"], max_length=48)
    policy = ScoringPolicy(spec_of(Listed()), encoder)
    assert policy.scores.query is not None  # the model is frozen
    x = policy.encoder.preprocess(states(1, 2))
    scored = policy.encoder.score(x)
    torch.testing.assert_close(
        policy.scores(policy.encoder, x, scored), normalized(scored, "token")
    )
    policy.inspect(x)["probabilities"][:, 0].sum().backward()
    assert policy.scores.query.weight.grad.abs().sum() > 0
    assert ScoringPolicy(spec_of(Listed()), partial(encoder, tune="lora")).scores.query is None


def test_masks_and_missing_candidates_are_impossible(models):
    policy = ScoringPolicy(
        spec_of(Listed()), partial(TextActionEncoder, model=models["llama"], max_length=48)
    )
    obs = states(1, 2)
    x = policy.encoder.preprocess(obs)
    counts = [len(t.split("\n")) for t in obs["actions"]]
    probabilities = policy.inspect(x)["probabilities"]
    for n, count in enumerate(counts):
        assert (probabilities[n, count:] == 0).all()
        assert (probabilities[n, :count] > 0).all()
    mask = torch.ones(2, MOST, dtype=torch.bool)
    mask[:, 0] = False
    assert (policy.inspect(x, mask=mask)["probabilities"][:, 0] == 0).all()


def test_q_values_are_a_value_and_what_the_model_prefers(models):
    network = ScoringQNetwork(
        spec_of(Listed()),
        partial(TextActionEncoder, model=models["llama"], max_length=48),
        scale=0.5,
    )
    x = network.encoder.preprocess_raw(states(1, 2))
    q = network(x)
    scored = network.encoder.score(network.encoder.standardized(x))
    scores = normalized(scored, "token")
    for n in range(2):
        own = scored.exists[n]
        value = network.value(scored.features[n]).squeeze()
        mean = scores[n, own].mean()
        torch.testing.assert_close(q[n, own], value + 0.5 * (scores[n, own] - mean))
    with pytest.raises(ConfigurationError, match="distribution: none"):
        ScoringQNetwork(spec_of(Listed()), None, outputs=51)


@pytest.mark.parametrize("tune", ["frozen", "lora"])
def test_dqn_plays_no_candidate_that_is_not_there(models, tune):
    """The missing ones' scores are 0, and all others' are below."""
    encoder = partial(TextActionEncoder, model=models["llama"], tune=tune, max_length=48)
    agent = DQN(spec_of(Listed()), encoder, ScoringQNetwork).eval()
    obs = states(*range(12))
    x = agent.encoder.preprocess_raw(obs)
    there = torch.tensor([len(text.split("\n")) for text in obs["actions"]])
    assert (agent.policy.encoder.exists(x).sum(-1) == there).all()
    everything = torch.ones(12, MOST, dtype=torch.bool)
    for explore in (False, True):
        assert (agent.act(x, explore=explore, mask=everything)["action"] < there).all()
    with pytest.raises(RunError, match=r"offers 2 texts for 6 actions.*info\['action_mask'\]"):
        agent.act(x)
    batch = {"next_obs": x, "next_action_mask": everything}
    with torch.no_grad():
        values = agent.target(x).masked_fill(~agent.policy.encoder.exists(x), -torch.inf)
        chosen = agent.policy(x).masked_fill(~agent.policy.encoder.exists(x), -torch.inf).argmax(-1)
    expected = values.gather(1, chosen[:, None])[:, 0]
    torch.testing.assert_close(agent.bootstrap(TensorDict(batch, [12])), expected)


def test_an_action_that_was_no_candidate_is_not_learned(models):
    encoder = partial(TextActionEncoder, model=models["llama"], max_length=48)
    policy = ScoringPolicy(spec_of(Listed()), encoder)
    x = policy.encoder.preprocess({"observation": ("x", "y"), "actions": ("go\nwait", "go")})
    policy.evaluate(TensorDict({"obs": x, "action": torch.tensor([1, 0])}, [2]))
    with pytest.raises(RunError, match="is none of the texts that its observation's entry"):
        policy.evaluate(TensorDict({"obs": x, "action": torch.tensor([1, 1])}, [2]))


def test_any_policy_can_read_with_it(models):
    encoder = partial(TextActionEncoder, model=models["llama"], actions=NAMES)
    policy = ActorCritic(spec_of(Named()), encoder)
    assert policy.inspect(policy.encoder.preprocess(TEXTS))["probabilities"].shape == (3, 2)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"actions": ["north"]}, "actions: 1 texts for the 2 actions of Probe-v0"),
        ({"actions": ["north", " north"]}, "actions: 'north' stands there twice"),
        ({"actions": ["north", 3]}, r"actions: expected a list of texts, not \['north', 3\]"),
        ({"actions": "ab"}, "actions: expected a list of texts, not 'ab'"),
        ({"actions": ["north", " "]}, "the action '' has no token"),
        ({"actions": None}, "nobody says what the 2 actions of Probe-v0 are called"),
        ({"template": "{observation} Go: "}, "ends in a space"),
        (
            {"template": "{mission} Go:"},
            r"no field \{mission\}; there are 'observ",
        ),
        ({"max_length": 257}, "max_length=257 is more than the 256 tokens the model reads"),
        ({"max_length": 256}, "max_length=256 and an action of . tokens are more than the 256"),
        ({"pooling": "cls"}, "pooling='cls'"),
        ({"method": "fast"}, "method='fast'"),
        ({"max_actions_length": 0}, "max_actions_length"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"chat": True}, "has no chat template"),
    ],
)
def test_what_makes_no_sense_is_refused(models, kwargs, message):
    with pytest.raises(ConfigurationError, match=message):
        fixed(models["llama"], **kwargs)


def test_what_cannot_be_scored_is_refused(models):
    box = EnvSpec(Named().observation_space, gym.spaces.Box(-1, 1), "Probe-v0")
    with pytest.raises(ConfigurationError, match=r"actions of Probe-v0 are Box.*use LLMEncoder"):
        TextActionEncoder(box, models["llama"])
    texts = EnvSpec(Named().observation_space, gym.spaces.Text(9), "Probe-v0")
    with pytest.raises(ConfigurationError, match=r"are Text.*wrap it in AdmissibleActions"):
        TextActionEncoder(texts, models["llama"])
    numbers = EnvSpec(gym.spaces.Box(-1, 1), gym.spaces.Discrete(2), "Probe-v0")
    with pytest.raises(ConfigurationError, match="wrap the environment in `Describe`"):
        TextActionEncoder(numbers, models["llama"], actions=NAMES)
    with pytest.raises(ConfigurationError, match=r"bert.*sees the tokens that it is to predict"):
        fixed(models["bert"])
    from rl_lightning import MLPEncoder

    vector = EnvSpec(gym.spaces.Box(-1, 1, (3,)), gym.spaces.Discrete(2), "Probe-v0")
    for made in (ScoringPolicy, ScoringQNetwork):
        with pytest.raises(ConfigurationError, match=f"{made.__name__} chooses by .*MLPEncoder"):
            made(vector, MLPEncoder)
    for wrong in ({"normalize": "length"}, {"temperature": 0.0}):
        with pytest.raises(ConfigurationError, match=next(iter(wrong))):
            ScoringPolicy(
                spec_of(Named()),
                partial(TextActionEncoder, model=models["llama"], actions=NAMES),
                **wrong,
            )


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("go\ngo", "'go' stands there twice"),
        ("\n".join("abcdefg"), "7 candidates for an action space of 6"),
        ("go\n\nwait", "the action '' has no token"),
        ("go\n \nwait", "the action '' has no token"),
        ("go to the " * 40, "tokens together, and max_actions_length is 90"),
    ],
)
def test_a_state_with_no_choice_is_told(models, lines, message):
    encoder = listed(models["llama"])
    with pytest.raises(RunError, match=message):
        encoder.preprocess({"observation": ("x",), "actions": (lines,)})


def test_where_nothing_may_be_done_there_is_a_value_but_no_choice(models):
    for tune in ("frozen", "lora"):
        encoder = partial(TextActionEncoder, model=models["llama"], tune=tune, max_length=48)
        policy = ScoringPolicy(spec_of(Listed()), encoder)
        x = policy.encoder.preprocess({"observation": ("x", "x"), "actions": ("", "go\nwait")})
        value = policy.value(x)
        torch.testing.assert_close(value[0], value[1])  # the prompt is the same
        with pytest.raises(RunError, match="there is no candidate to choose from"):
            policy.act(x)


def scores(encoder, texts=TEXTS):
    with torch.no_grad():
        return encoder.score(encoder.preprocess(texts)).log_prob


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "bfloat16"},
        {"pretrained": False},
        {"pretrained": False, "config_overrides": {"hidden_size": 64}},
    ],
)
def test_arguments_of_the_model_reach_it(models, change):
    torch.manual_seed(5)  # for random weights, which are not those that lie on the disk
    changed = fixed(models["llama"], **change)
    assert (scores(changed) - scores(fixed(models["llama"]))).abs().max() > 1e-4
    if "dtype" in change:
        assert changed.backbone.model.dtype == torch.bfloat16
    if "config_overrides" in change:
        assert changed.out_dim == 64


def test_arguments_of_adapters_reach_them(models):
    def shapes(**kwargs):
        encoder = fixed(models["llama"], "lora", **kwargs)
        return {n: p.shape for n, p in encoder.named_parameters() if "lora_A" in n}

    assert {shape[0] for shape in shapes().values()} == {8}
    assert {shape[0] for shape in shapes(lora_rank=3).values()} == {3}
    assert all("q_proj" in name for name in shapes(lora_targets=["q_proj"]))
    assert not any("lm_head" in name for name in shapes())
    scale = []
    for alpha in (16, 32):
        encoder = fixed(models["llama"], "lora", lora_alpha=alpha)
        with torch.no_grad():
            for name, parameter in encoder.named_parameters():
                if "lora_B" in name:
                    parameter.fill_(0.01)
        scale.append(scores(encoder))
    assert (scale[0] - scale[1]).abs().max() > 1e-4


def test_control_tokens_in_a_text_act_only_where_they_may(models):
    text = ["There is a </s> wall"]
    for splits in (True, False):
        encoder = fixed(models["llama"], split_special_tokens=splits)
        (rows, _) = encoder.choices.rows(text)
        assert (1 in rows.ids[rows.part == 0].tolist()) is not splits


def test_the_chat_template_is_used_where_asked(models, tmp_path):
    import shutil

    import transformers as t

    folder = shutil.copytree(models["llama"], tmp_path / "chat")
    tokenizer = t.AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = (
        "{% for m in messages %}<s>{{ m['content'] }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<s>say:{% endif %}"
    )
    tokenizer.save_pretrained(folder)
    plain, chat = fixed(str(folder)), fixed(str(folder), chat=True)
    (ids,) = chat.choices.rows(TEXTS[:1])[0].ids.tolist()
    assert tokenizer.decode(ids).startswith("<s>There is a wall")
    assert "</s><s>say:" in tokenizer.decode(ids)
    assert (scores(plain) - scores(chat)).abs().max() > 1e-3


def test_as_much_is_remembered_as_there_is_room_for(models):
    for tune in ("frozen", "lora"):
        for room in ({"cache_size": 1}, {"cache_bytes": 0}, {"cache_size": 0}):
            encoder = fixed(models["llama"], tune, **room)
            encoder.preprocess(TEXTS)
            assert len(encoder.cache) == room.get("cache_size", 0)


def test_states_are_read_so_many_at_a_time(models, monkeypatch):
    from rl_lightning.encoders import actions

    for tune in ("frozen", "lora"):
        encoder = fixed(models["llama"], tune, batch_size=2)
        sizes = []

        def counted(backbone, rows, *more, sizes=sizes):
            sizes.append(len(rows.ids))
            return score(backbone, rows, *more)

        monkeypatch.setattr(actions, "score", counted)
        scores(encoder, [f"a wall {i}" for i in range(5)])
        assert sorted(sizes) == [1, 2, 2]


def test_the_critic_is_built_as_asked(models):
    encoder = partial(TextActionEncoder, model=models["llama"], actions=NAMES, max_length=48)
    policy = ScoringPolicy(
        spec_of(Named()), encoder, critic_hidden=[7, 5], critic_activation="relu"
    )
    kinds = [type(layer).__name__ for layer in policy.critic]
    assert [m.out_features for m in policy.critic if hasattr(m, "out_features")] == [7, 5, 1]
    assert "ReLU" in kinds
    network = ScoringQNetwork(
        spec_of(Named()), encoder, value_hidden=[9], value_activation="tanh", head=False
    )
    assert [m.out_features for m in network.value if hasattr(m, "out_features")] == [9, 1]
    assert "Tanh" in [type(layer).__name__ for layer in network.value]
    assert network.scores.query is None


def test_q_values_mind_how_scores_are_normalised(models):
    torch.manual_seed(0)
    encoder = partial(TextActionEncoder, model=models["llama"], actions=NAMES, max_length=48)
    gaps = []
    for normalize in ("sum", "token", "word"):
        network = ScoringQNetwork(spec_of(Named()), encoder, normalize=normalize, head=False)
        with torch.no_grad():
            q = network(network.encoder.preprocess_raw(TEXTS[:1]))
        gaps.append(float(q[0, 0] - q[0, 1]))
    assert len({round(gap, 3) for gap in gaps}) == 3
