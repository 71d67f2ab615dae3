"""Comparisons drawn, split, labelled, learned from; interrupted and gone on with."""

import json
import re
import warnings

import numpy as np
import pytest
import torch
from preference_tools import Words, model, module, near_and_new, record_mazes, record_numbers
from training import make_trainer

from rl_lightning import PPO, MLPEncoder, PreferenceDataModule, RewardModel, RolloutDataModule
from rl_lightning.core.errors import ConfigurationError, RunError
from rl_lightning.core.order import split
from rl_lightning.data.preferences.labelling import answered
from rl_lightning.data.preferences.lines import Lines
from rl_lightning.data.preferences.questions import Questions, draw
from rl_lightning.data.preferences.recorded import RecordedSteps
from rl_lightning.rewards import EndpointLabeller, RuleLabeller


@pytest.fixture(scope="module")
def mazes(tmp_path_factory):
    return record_mazes(tmp_path_factory.mktemp("mazes") / "mazes.hdf5")


def fit(learner, data, ckpt_path=None, **trainer):
    made = make_trainer(gradient_clip_val=None, limit_val_batches=1.0, **trainer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made.fit(learner, data, ckpt_path=ckpt_path)
    return made


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


# --- drawing ------------------------------------------------------------------------------------


def test_a_share_of_different_keys_is_held_out():
    keys = np.repeat(np.arange(20), 5)
    held_out = split(keys, 0.25, np.random.default_rng(0))
    assert held_out.sum() == 25
    assert not set(keys[held_out]) & set(keys[~held_out])
    assert not split(keys, 0.0, np.random.default_rng(0)).any()


def test_pairs_differ_even_where_nearly_all_is_alike():
    keys = np.array([0] * 1000 + [1])
    pairs = draw(np.arange(1001), keys, 50, 2, np.random.default_rng(0))
    assert (keys[pairs[:, 0]] != keys[pairs[:, 1]]).all()
    singles = draw(np.arange(1001), keys, 50, 1, np.random.default_rng(0))
    assert singles.shape == (50, 1)
    with pytest.raises(ConfigurationError, match="needs 2 different observations, and there are 1"):
        draw(np.arange(5), np.zeros(5, int), 3, 2, np.random.default_rng(0))


def test_recorded_steps_are_drawn_by_seed_and_apart(mazes):
    source = RecordedSteps(mazes, "next_obs", None)
    train, val = source.questions(200, 0.25, 2, seed=3)
    assert (len(train), len(val)) == (150, 50)
    texts = [{source.text(i) for i in part.items.reshape(-1)} for part in (train, val)]
    assert not texts[0] & texts[1]  # nothing that is validated by was trained on
    again, _ = RecordedSteps(mazes, "next_obs", None).questions(200, 0.25, 2, seed=3)
    assert (again.items == train.items).all()
    other, _ = source.questions(200, 0.25, 2, seed=4)
    assert (other.items != train.items).any()


def test_items_are_what_steps_led_to(mazes):
    source = RecordedSteps(mazes, "next_obs", None)
    episodes = list(source.dataset.episodes())
    led_to = [text for episode in episodes for text in episode.observations[1:]]
    assert [source.text(i) for i in range(len(led_to))] == led_to
    items = np.array([0, 5, len(led_to) - 1])
    (block,) = source.observations(items, 10)
    assert block == (None, None, tuple(led_to[i] for i in items))
    assert [len(after) for _, _, after in source.observations(np.arange(25), 10)] == [10, 10, 5]


def test_transitions_have_their_actions_and_texts(mazes):
    source = RecordedSteps(mazes, "transition", None)
    episode = next(source.dataset.episodes())
    assert source.text(1) == (
        f"{episode.observations[1]}\nAction: {episode.actions[1]}\n{episode.observations[2]}"
    )
    (block,) = source.observations(np.array([0, 1]), 10)
    assert block[0] == tuple(episode.observations[:2])
    assert block[1].tolist() == episode.actions[:2].tolist()
    assert block[2] == tuple(episode.observations[1:3])


def sign(obs):
    return "warm" if obs[0] > 0 else "cold"


def test_numbers_are_put_into_words(tmp_path):
    path = record_numbers(tmp_path / "numbers.hdf5")
    with pytest.raises(ConfigurationError, match=r"hold no text .* give data.describe"):
        RecordedSteps(path, "next_obs", None)
    source = RecordedSteps(path, "next_obs", sign)
    assert {source.text(i) for i in range(20)} <= {"warm", "cold"}
    step = RecordedSteps(path, "transition", lambda s, a, after: f"{a} {sign(after)}")
    assert re.fullmatch(r"\d (warm|cold)", step.text(0))
    with pytest.raises(ConfigurationError, match="describe returned 3, which is no text"):
        RecordedSteps(path, "next_obs", lambda obs: 3)  # type: ignore[arg-type]


# --- labels -------------------------------------------------------------------------------------


def test_both_orders_are_asked_and_averaged(mazes):
    source = RecordedSteps(mazes, "next_obs", None)
    train, _ = source.questions(20, 0.0, 2, seed=0)
    asked = []

    def first(pair):  # likes what comes first
        asked.append(pair)
        return 0.0

    assert answered(source, train, RuleLabeller(first), True).tolist() == [0.5] * 20
    assert {(b, a) for a, b in asked} == set(asked)
    assert answered(source, train, RuleLabeller(first), False).tolist() == [0.0] * 20
    half = RuleLabeller(lambda pair: None if pair < pair[::-1] else 1.0)
    assert np.isnan(answered(source, train, half, True)).all()


def test_what_has_no_answer_is_left_out(mazes):
    some = RuleLabeller(lambda pair: 1.0 if len(pair[0]) % 2 else None)
    data = module(mazes, some)
    with pytest.warns(UserWarning, match="of 240 training questions have no answer"):
        make_trainer(gradient_clip_val=None).fit(model(data.spec), data)
    assert 0 < len(data.labelled("training")) < 240
    with pytest.raises(ConfigurationError, match="none of 240 training questions has an answer"):
        fit(model(data.spec), module(mazes, RuleLabeller(lambda pair: None)))


def test_labels_out_of_range_and_failures_get_a_sentence(mazes):
    data = module(mazes, RuleLabeller(lambda pair: 2.0))
    with pytest.raises(ConfigurationError, match=r"2 is no label for model.objective: preferences"):
        fit(model(data.spec), data)
    data = module(mazes, RuleLabeller(lambda pair: 1 / 0))
    with pytest.raises(RunError, match="ZeroDivisionError"):
        fit(model(data.spec), data)
    data = PreferenceDataModule(mazes)
    with pytest.raises(ConfigurationError, match="1800 questions have no label and nobody answers"):
        fit(model(data.spec), data)


# --- learning -----------------------------------------------------------------------------------


def test_it_learns_what_the_labeller_likes(mazes):
    data = module(mazes)
    learner = model(data.spec)
    trainer = fit(learner, data)
    assert trainer.callback_metrics["val/accuracy"] > 0.9
    assert trainer.callback_metrics["val/loss"] < 0.4
    good = "New north, new east, new south, new west. The exit is near north, near east."
    bad = "Often north, often east, wall south, often west. The exit is far north, far east."
    first, second = learner.score((good, bad)).tolist()
    assert first > second
    told = learner.statistics
    assert told is not None
    assert told["count"] == 2 * 240
    assert trainer.callback_metrics["labels/asked"] > 0
    (found,) = trainer.validate(learner, data, verbose=False)
    assert found["val/accuracy"] == trainer.callback_metrics["val/accuracy"]
    (found,) = trainer.test(learner, data, verbose=False)
    assert found["test/accuracy"] > 0.9


def test_statistics_are_those_of_the_drawn_observations(mazes):
    data = module(mazes, total_updates=20)
    learner = model(data.spec)
    trainer = fit(learner, data)
    source = RecordedSteps(mazes, "next_obs", None)
    train, _ = source.questions(300, 0.2, 2, 0)
    r = learner.score(tuple(source.text(int(i)) for i in train.items.reshape(-1))).double()
    assert learner.statistics is not None
    assert learner.statistics["mean"] == pytest.approx(r.mean().item(), rel=1e-5)
    assert learner.statistics["std"] == pytest.approx(r.std(correction=0).item(), rel=1e-5)
    assert trainer.global_step == 20


@pytest.mark.parametrize("objective", ["regression", "classification"])
def test_single_labels_are_learned(mazes, objective):
    score = near_and_new().score
    rule = score if objective == "regression" else lambda text: float(score(text) > -2)
    data = module(mazes, RuleLabeller(rule), pairs=400, total_updates=200)
    learner = model(data.spec, objective=objective)
    metrics = fit(learner, data).callback_metrics
    if objective == "regression":
        assert metrics["val/error"] < 0.3
    else:
        assert metrics["val/accuracy"] > 0.85


def test_transitions_are_learned(mazes):
    def north(pair):  # the action alone decides
        a, b = ("Action: 0" in text for text in pair)
        return 0.5 if a == b else float(b)

    data = module(mazes, RuleLabeller(north), total_updates=100)
    metrics = fit(model(data.spec, inputs="transition"), data).callback_metrics
    assert metrics["val/accuracy"] > 0.9


def test_numbers_are_learned_and_normalised(tmp_path):
    path = record_numbers(tmp_path / "numbers.hdf5")
    rule = RuleLabeller(lambda pair: float(pair[1] == "warm"))
    data = module(path, rule, describe=sign, val_share=0.0, total_updates=200)
    encoder = lambda spec: MLPEncoder(spec, normalize=True)  # noqa: E731
    learner = model(data.spec, encoder=encoder)
    trainer = fit(learner, data)
    assert learner.encoder.norm.running.count > 0  # type: ignore[union-attr]
    assert "val/accuracy" not in trainer.callback_metrics  # nothing was held out
    warm, cold = learner.score(np.array([[1.0, 0.3], [-1.0, 0.3]], np.float32)).tolist()
    assert warm > cold


# --- a file of comparisons ----------------------------------------------------------------------


def test_lines_with_and_without_labels(tmp_path):
    rows = [{"a": "near exit", "b": f"far {i}", "label": 0} for i in range(10)]
    rows += [{"a": "far 1", "b": f"near exit {i}"} for i in range(10)]
    path = write(tmp_path / "pairs.jsonl", *rows)
    data = module(path, near_and_new(), total_updates=40)
    learner = model(data.spec)
    fit(learner, data)
    assert learner.spec.observation_space == data.spec.observation_space
    near, far = learner.score(("near", "far")).tolist()
    assert near > far
    assert data.labeller is not None
    assert data.labeller.counts["asked"] == 10  # the others have labels
    assert len(data.labelled("training")) + len(data.labelled("validation")) == 20


def test_a_pair_and_its_mirror_are_on_one_side(tmp_path):
    rows = []
    for i in range(20):
        rows += [{"a": f"x{i}", "b": "y", "label": 0}, {"a": "y", "b": f"x{i}", "label": 1}]
    lines = Lines(write(tmp_path / "p.jsonl", *rows))
    train, val = lines.questions(0, 0.3, 2, 0)
    sides = [{frozenset(row) for row in part.items.tolist()} for part in (train, val)]
    assert not sides[0] & sides[1]
    assert (len(train), len(val)) == (28, 12)


def test_scored_lines(tmp_path):
    rows = [{"text": "near " * (i % 3), "label": float(i % 3)} for i in range(30)]
    path = write(tmp_path / "scores.jsonl", *rows)
    data = PreferenceDataModule(path, total_updates=100, val_share=0.0)
    learner = model(data.spec, objective="regression")
    fit(learner, data)
    assert learner.score(("", "near ", "near near ")).tolist() == pytest.approx([0, 1, 2], abs=0.3)
    with pytest.raises(ConfigurationError, match=r"holds single texts, and this .* needs pairs"):
        fit(model(data.spec), PreferenceDataModule(path))


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([], "is empty"),
        ([{"a": "x"}], "line 1 of .* must have a and b"),
        ([{"a": "x", "b": "y", "label": "a"}], "a number as label"),
        ([{"text": "x", "label": 1}, {"a": "x", "b": "y"}], "line 2 of .* must have text"),
        ([{"a": "x", "b": "y", "label": 7}] * 4, "7 is no label"),
    ],
)
def test_wrong_lines_get_a_sentence(tmp_path, rows, told):
    path = write(tmp_path / "pairs.jsonl", *rows)

    def run():
        data = PreferenceDataModule(path, val_share=0.0)
        fit(model(data.spec), data)

    with pytest.raises(ConfigurationError, match=told):
        run()


# --- arguments ----------------------------------------------------------------------------------


def test_batches_pass_over_everything(mazes):
    data = module(mazes, batch_size=7)
    data.trainer = type("T", (), {"global_rank": 0})()  # type: ignore[assignment]
    drawn = torch.cat([data.order(update, 20) for update in range(20)])
    assert len(drawn) == 140
    for number in range(7):
        assert sorted(drawn[20 * number : 20 * number + 20].tolist()) == list(range(20))
    assert drawn[:20].tolist() != drawn[20:40].tolist()
    other = module(mazes, batch_size=7, seed=5)
    other.trainer = data.trainer
    assert other.order(0, 20).tolist() != data.order(0, 20).tolist()


@pytest.mark.parametrize(
    ("kwargs", "told"),
    [
        ({"pairs": 1}, "data.pairs must be at least 2"),
        ({"val_share": 0.95}, "data.val_share must be between 0 and 0.9"),
        ({"batch_size": 0}, "data.batch_size"),
        ({"updates_per_epoch": 0}, "data.updates_per_epoch"),
        ({"total_updates": 0}, "data.total_updates"),
        ({"seed": -1}, "data.seed"),
        ({"num_envs": 3}, "has no argument 'num_envs'"),
    ],
)
def test_wrong_arguments_get_a_sentence(mazes, kwargs, told):
    with pytest.raises(ConfigurationError, match=told):
        PreferenceDataModule(mazes, **kwargs)


def test_other_agents_and_predict_are_refused(mazes, tmp_path):
    data = module(mazes)
    with pytest.raises(ConfigurationError, match="PPO does not learn from preferences"):
        fit(PPO(data.spec, Words), data)
    env = RolloutDataModule("CartPole-v1", 2, 8, total_frames=16)
    with pytest.raises(ConfigurationError, match="RewardModel"):
        fit(RewardModel(env.spec), env)
    trainer = make_trainer()
    with pytest.raises(ConfigurationError, match="a reward model plays none"):
        trainer.predict(model(data.spec), data)
    lines = PreferenceDataModule(write(tmp_path / "p.jsonl", {"a": "x", "b": "y", "label": 1}))
    with pytest.raises(ConfigurationError, match="transition judges steps"):
        fit(model(lines.spec, inputs="transition"), lines)


# --- checkpoints --------------------------------------------------------------------------------


def weights(learner):
    return {name: value.clone() for name, value in learner.state_dict().items()}


def test_resumed_is_uninterrupted_to_the_last_bit(mazes, tmp_path):
    whole = module(mazes, total_updates=80)
    learner = model(whole.spec, dropout=0.3)
    fit(learner, whole)
    first = module(mazes, total_updates=40)
    part = model(first.spec, dropout=0.3)
    fit(part, first).save_checkpoint(tmp_path / "half.ckpt")
    torch.manual_seed(99)
    rest = module(mazes, total_updates=80)
    again = RewardModel.load_from_checkpoint(tmp_path / "half.ckpt")
    assert again.statistics is not None
    assert part.statistics is not None
    assert torch.equal(again.statistics["quantiles"], part.statistics["quantiles"])
    fit(again, rest, ckpt_path=str(tmp_path / "half.ckpt"))
    for name, value in weights(learner).items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert again.updates == 80


def test_other_labels_on_resuming_are_told(mazes, tmp_path):
    data = module(mazes, total_updates=20)
    learner = model(data.spec)
    fit(learner, data).save_checkpoint(tmp_path / "a.ckpt")
    other = module(mazes, RuleLabeller(lambda pair: 1.0), total_updates=40)
    with pytest.warns(UserWarning, match="training began with 240 comparisons"):
        make_trainer(gradient_clip_val=None).fit(learner, other, ckpt_path=str(tmp_path / "a.ckpt"))


def test_a_checkpoint_does_not_say_whom_to_ask(mazes, tmp_path, monkeypatch):
    monkeypatch.setenv("OWN_API_KEY", "sk-0123-secretive")
    rows = [{"a": "near", "b": f"far {i}", "label": 0} for i in range(20)]
    labeller = EndpointLabeller("http://127.0.0.1:9/v1", "m", api_key_env="OWN_API_KEY")
    path = write(tmp_path / "p.jsonl", *rows)
    data = module(path, labeller, total_updates=20)
    fit(model(data.spec), data).save_checkpoint(tmp_path / "a.ckpt")
    loaded = PreferenceDataModule.load_from_checkpoint(tmp_path / "a.ckpt")
    assert loaded.labeller is None
    assert (loaded.dataset, loaded.pairs) == (path, 300)
    for file in tmp_path.rglob("*"):
        assert file.is_dir() or b"secretive" not in file.read_bytes()
    given = PreferenceDataModule.load_from_checkpoint(tmp_path / "a.ckpt", labeller=labeller)
    assert given.labeller is labeller


def test_a_second_run_asks_nothing(mazes, tmp_path):
    def rule(pair):
        asked.append(pair)
        return float(pair[0] < pair[1])

    cache, asked = str(tmp_path / "answers.jsonl"), []
    for _ in range(2):
        data = module(mazes, RuleLabeller(rule, cache=cache), total_updates=20)
        fit(model(data.spec), data)
    assert len(asked) == len(set(asked))
    assert data.labeller.counts["asked"] == 0


def test_questions_that_are_known():
    questions = Questions(np.zeros((3, 2), int), np.array([0.0, np.nan, 1.0]))
    assert questions.known().labels.tolist() == [0.0, 1.0]
