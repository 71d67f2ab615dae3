"""Labels by a language model on this machine: the likelier option, the nearer sentence."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from llm_tiny import tiny_model

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.llm.load import load_backbone
from rl_lightning.llm.options import OptionScorer
from rl_lightning.rewards import OptionLabeller, SimilarityLabeller


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {kind: tiny_model(kind, root / kind) for kind in ("gpt2", "llama", "bert", "t5")}


PROMPTS = ["go to the red ball:", "You see a wall 2 steps forward, and much more than that:", "a:"]
OPTIONS = [" the green key", " A", " tie game"]


def by_hand(model, prompt, option):
    """One row by itself, tokenised as a whole, token after token."""
    loaded, tokenizer = load_backbone(model, head=True)
    found = tokenizer(prompt + option, return_offsets_mapping=True)
    ids, total = found["input_ids"], 0.0
    for i in range(1, len(ids)):
        if found["offset_mapping"][i][1] > len(prompt):
            with torch.no_grad():
                logits = loaded(input_ids=torch.tensor([ids[:i]])).logits[0, -1]
            total += logits.log_softmax(-1)[ids[i]].item()
    return total


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_batched_equals_single_and_a_sum_by_hand(models, kind):
    scorer = OptionScorer(models[kind], batch_size=4)
    scores = scorer(PROMPTS, OPTIONS)
    assert scores.shape == (3, 3)
    for i, prompt in enumerate(PROMPTS):
        for j, option in enumerate(OPTIONS):
            assert scores[i, j].item() == pytest.approx(
                by_hand(models[kind], prompt, option), abs=2e-4
            )
            single = OptionScorer(models[kind], batch_size=1)([prompt], [option])
            torch.testing.assert_close(single[0, 0], scores[i, j], atol=1e-4, rtol=1e-5)


def test_what_cannot_be_scored_gets_a_sentence(models):
    with pytest.raises(ConfigurationError, match="longer than max_length=8"):
        OptionScorer(models["gpt2"], max_length=8)([PROMPTS[1]], [" A"])
    with pytest.raises(ConfigurationError, match="no tokens of its own"):
        OptionScorer(models["gpt2"])(["a"], [""])
    with pytest.raises(ConfigurationError, match="reads by one half and writes by the other"):
        OptionScorer(models["t5"])
    with pytest.raises(ConfigurationError, match="bert"):
        OptionScorer(models["bert"])
    with pytest.raises(ConfigurationError, match="dtype='float8'"):
        OptionScorer(models["gpt2"], "float8")  # type: ignore[arg-type]


def test_the_likelier_option_is_the_answer(models):
    labeller = OptionLabeller(models["llama"], options={" A": 0.0, " B": 1.0, " tie": 0.5})
    pairs = [("go to the red ball", "a wall"), ("x", "open the yellow door"), ("x", "x")]
    answers = labeller(pairs)
    scores = OptionScorer(models["llama"])(
        [labeller.prompt(p) for p in pairs], [" A", " B", " tie"]
    )
    assert answers == [[0.0, 1.0, 0.5][i] for i in scores.argmax(1).tolist()]
    soft = OptionLabeller(models["llama"], soft=True)(pairs)
    expected = OptionScorer(models["llama"])([labeller.prompt(p) for p in pairs], [" A", " B"])
    assert soft == pytest.approx(expected.softmax(1)[:, 1].tolist(), abs=1e-5)


def test_single_texts_and_chats(models):
    labeller = OptionLabeller(models["gpt2"], "{text} Is it?", {" yes": 1.0, " no": 0.0}, soft=True)
    (answer,) = labeller(["a wall"])
    assert answer is not None
    assert 0 < answer < 1
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    assert labeller.prompt(chat) == "system: s\nuser: u\nassistant:"
    assert labeller([chat])[0] is not None


def test_the_model_is_read_when_asked_and_answers_are_kept(models, tmp_path):
    cache = str(tmp_path / "a.jsonl")
    labeller = OptionLabeller(models["gpt2"], cache=cache)
    assert "answer_options" not in vars(labeller)
    first = labeller([("a", "b")])
    again = pickle.loads(pickle.dumps(labeller))
    assert "answer_options" not in vars(again)
    assert OptionLabeller(models["gpt2"], cache=cache)([("a", "b")]) == first
    assert len(Path(cache).read_text().splitlines()) == 1
    labeller = OptionLabeller(models["gpt2"], cache=cache)
    labeller.answer_options = lambda prompts, options: torch.zeros(len(prompts), 2)  # swapped
    assert labeller([("b", "a")]) == [0.0]


def test_wrong_options_get_a_sentence(models):
    for options in ({" A": 0.0}, {"": 0.0, " B": 1.0}):
        with pytest.raises(ConfigurationError, match="options must be two"):
            OptionLabeller(models["gpt2"], options=options)


def test_the_nearer_sentence_is_the_better_one(models):
    goal, texts = "open the yellow door", ["open the yellow door", "a wall", "go to the red ball"]
    labeller = SimilarityLabeller(goal, model=models["bert"])
    near = labeller(texts)
    assert near[0] == pytest.approx(1.0, abs=1e-5)
    assert max(near[1:]) < 1.0  # type: ignore[type-var]
    pairs = [(texts[1], texts[0]), (texts[0], texts[2]), (texts[2], texts[2])]
    assert labeller(pairs) == [1.0, 0.0, 0.5]
    assert SimilarityLabeller(goal, margin=2.0, model=models["bert"])(pairs) == [0.5] * 3
    both = SimilarityLabeller([texts[1], goal], model=models["bert"])(texts)
    assert both[:2] == pytest.approx([1.0, 1.0], abs=1e-5)
    less = SimilarityLabeller(goal, [texts[1]], model=models["bert"])(texts)
    assert less[1] == pytest.approx(near[1] - 1.0, abs=1e-5)  # type: ignore[operator]
    long = [f"You see {texts[1]}. {goal}", texts[1], f"{texts[1]}\n{texts[2]}"]
    apart = SimilarityLabeller(goal, sentences=True, model=models["bert"])
    assert apart(long) == pytest.approx([1.0, near[1], max(near[1:])], abs=1e-5)  # type: ignore
    assert labeller(long)[0] < 0.999  # type: ignore[operator]
    assert apart.identity() != labeller.identity()
    with pytest.raises(ConfigurationError, match="reads no chats"):
        labeller([[{"role": "user", "content": "a"}]])
    with pytest.raises(ConfigurationError, match="goal must be a sentence"):
        SimilarityLabeller([], model=models["bert"])
    assert json.dumps(labeller.identity())
