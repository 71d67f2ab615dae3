"""Models, labellers and reasoning-gym as judges of completions."""

import math
import sys
import warnings
from types import SimpleNamespace

import gymnasium as gym
import pytest
from preference_tools import Words
from training import make_trainer

from rl_lightning import EnvSpec, MLPEncoder, PreferenceDataModule, RewardModel
from rl_lightning.core.errors import ConfigurationError, RunError
from rl_lightning.rewards.completions import (
    CompletionJudge,
    LabellerReward,
    ReasoningGymReward,
    RewardModelReward,
)
from rl_lightning.rewards.completions.reasoning import _is_list, _is_sum
from rl_lightning.rewards.labels import FileLabeller, RuleLabeller

CHAT = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}]


def judged(reward, prompts, completions, **columns):
    (part,) = CompletionJudge([reward]).judge(prompts, completions, columns=columns).parts.values()
    return part.tolist()


# --- a learned reward -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model that likes the word good, and where it is saved."""
    folder = tmp_path_factory.mktemp("model")
    words = [f"word{i}" for i in range(20)]
    lines = [f'{{"a": "{w} bad", "b": "{w} good", "label": 1}}' for w in words]
    (folder / "pairs.jsonl").write_text("\n".join(lines))
    data = PreferenceDataModule(str(folder / "pairs.jsonl"), total_updates=30, val_share=0.0)
    model = RewardModel(data.spec, encoder=Words, hidden=(8,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = make_trainer(gradient_clip_val=None)
        trainer.fit(model, data)
    trainer.save_checkpoint(folder / "reward.ckpt")
    return model.eval(), str(folder / "reward.ckpt")


def test_a_reward_model_reads_prompt_and_completion(trained):
    model, path = trained
    prompts, said = ["say ", "say ", CHAT], ["good", "bad", " good"]
    texts = ("say good", "say bad", "system: Be kind.\nuser: Hello\nassistant: good")
    raw = model.score(texts).double()
    told = model.statistics
    normal = ((raw - told["mean"]) / told["std"]).float()
    assert judged(RewardModelReward(path), prompts, said) == pytest.approx(normal.tolist())
    plain = RewardModelReward(path, normalize=False, batch_size=1)
    assert judged(plain, prompts, said) == pytest.approx(raw.tolist(), rel=1e-5)
    alone = RewardModelReward(path, template="{completion}", normalize=False)
    assert judged(alone, prompts, said)[0] == pytest.approx(model.score(("good",)).item())
    assert normal[0] > normal[1]
    assert not any(p.requires_grad for p in plain.model.parameters())
    assert CompletionJudge([plain]).judge([], []).total.tolist() == []


def test_batches_of_a_reward_model(trained):
    reward = RewardModelReward(trained[1], batch_size=2)
    sizes, score = [], reward.model.score
    reward.model.score = lambda texts: sizes.append(len(texts)) or score(texts)
    judged(reward, ["p"] * 5, ["a"] * 5)
    assert sizes == [2, 2, 1]


def untrained(path, spec, **kwargs):
    model = RewardModel(spec, **kwargs)
    trainer = make_trainer()
    trainer.strategy.connect(model)
    trainer.save_checkpoint(path)
    return str(path)


def test_checkpoints_that_judge_no_completions(trained, tmp_path):
    texts = EnvSpec(gym.spaces.Text(9), gym.spaces.Discrete(2), "t")
    path = untrained(tmp_path / "fresh.ckpt", texts, encoder=Words)
    with pytest.raises(ConfigurationError, match=r"no statistics .*normalize: false"):
        RewardModelReward(path)
    assert RewardModelReward(path, normalize=False).std == 1.0
    numbers = EnvSpec(gym.spaces.Box(-1, 1, (2,)), gym.spaces.Discrete(2), "n")
    path = untrained(tmp_path / "numbers.ckpt", numbers, encoder=MLPEncoder)
    with pytest.raises(ConfigurationError, match=r"judges observations of Box.* a completion has"):
        RewardModelReward(path)
    path = untrained(tmp_path / "steps.ckpt", texts, encoder=Words, inputs="transition")
    with pytest.raises(ConfigurationError, match="model of transitions"):
        RewardModelReward(path, normalize=False)
    with pytest.raises(ConfigurationError, match=r"template must hold {completion}"):
        RewardModelReward(trained[1], template="{prompt}")
    with pytest.raises(ConfigurationError, match="batch_size must be at least 1"):
        RewardModelReward(trained[1], batch_size=0)


# --- labellers ------------------------------------------------------------------------------------


def test_a_labeller_is_asked_about_template_and_columns():
    asked = []

    def score(question):
        asked.append(question)
        return float(len(question))

    template = "{prompt}|{completion}|{answer}"
    reward = LabellerReward(RuleLabeller(score), template)
    prompts, said = ["p", "{a}", CHAT], ["x{prompt}", "y", "z"]
    found = judged(reward, prompts, said, answer=[1, None, "b"])
    assert asked == [
        "p|x{prompt}|1",
        "{a}|y|None",
        "system: Be kind.\nuser: Hello\nassistant:|z|b",
    ]
    assert found == [float(len(question)) for question in asked]
    metrics = CompletionJudge([reward]).metrics()
    assert metrics["reward/labeller_reward/labels/asked"] == 3.0


def test_a_question_without_verdict_is_not_judged(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"question": "p\\n\\nx", "answer": 2}')
    reward = LabellerReward(FileLabeller(str(tmp_path / "a.jsonl"), missing="skip"))
    with pytest.warns(UserWarning, match="1 of 2 questions have no answer"):
        found = judged(reward, ["p", "p"], ["x", "y"])
    assert found[0] == 2.0
    assert math.isnan(found[1])
    strict = LabellerReward(FileLabeller(str(tmp_path / "a.jsonl")))
    with pytest.raises(RunError, match=r"the reward LabellerReward: .* has no answer to 'p"):
        judged(strict, ["p"], ["y"])


def test_templates_and_labellers_that_are_none():
    with pytest.raises(ConfigurationError, match=r"template must hold {completion}"):
        LabellerReward(RuleLabeller(len), "{prompt}")
    with pytest.raises(ConfigurationError, match="template"):
        LabellerReward(RuleLabeller(len), "{completion} {answer.real}")
    with pytest.raises(ConfigurationError, match="labeller must be a labeller"):
        LabellerReward(len)  # type: ignore[arg-type]
    reward = LabellerReward(RuleLabeller(len), "{completion} {answer}")
    with pytest.raises(ConfigurationError, match=r"needs a column 'answer'.*is none"):
        judged(reward, ["p"], ["y"])


# --- reasoning-gym --------------------------------------------------------------------------------

NEEDS_GYM = "needs reasoning-gym (the extra `tokens`)"


@pytest.fixture(scope="module")
def reasoning_gym():
    return pytest.importorskip("reasoning_gym", reason=NEEDS_GYM)


def entries(gym, task, count=2, **config):
    made = gym.create_dataset(task, size=count, seed=1, **config)
    return [made[i] for i in range(count)]


def test_a_tasks_own_score(reasoning_gym):
    first, second = entries(reasoning_gym, "leg_counting")
    said = [
        f"<think>5?</think><answer> {first['answer']} </answer>",
        f"{second['answer']}",
        "<answer>1</answer>",
    ]
    rows = {"entry": [first, second, second]}
    assert judged(ReasoningGymReward(), ["p"] * 3, said, **rows) == [1.0, 0.0, 0.0]
    plain = ReasoningGymReward(pattern="")
    assert judged(plain, ["p"], [second["answer"]], entry=[second]) == [1.0]
    assert judged(ReasoningGymReward("", "task"), ["p"], ["x"], task=[second]) == [0.0]


def test_a_task_scores_by_its_own_config(reasoning_gym):
    rough = {"max_num_decimal_places": 1, "min_num_decimal_places": 1}
    (entry,) = entries(reasoning_gym, "decimal_arithmetic", 1, **rough)
    said = str(float(entry["answer"]) + 0.05)
    rows = {"entry": [entry] * 2, "config": [None, rough]}
    assert judged(ReasoningGymReward(""), ["p"] * 2, [said] * 2, **rows) == [0.0, 1.0]


def test_what_a_rule_stops_at_is_worth_nothing(reasoning_gym):
    (entry,) = entries(reasoning_gym, "prime_factorization", 1)
    task = reasoning_gym.create_dataset("prime_factorization", size=1, seed=1)
    with pytest.raises(ValueError, match="invalid literal"):
        task.score_answer("two times three", entry)
    found = judged(ReasoningGymReward(""), ["p"], ["two times three"], entry=[entry])
    assert found == [0.0]


HARM = {
    "string_insertion": "[open({path!r}, 'w')]",
    "spiral_matrix": "[open({path!r}, 'w')]",
    "binary_matrix": "[[open({path!r}, 'w')]]",
    "n_queens": "[[open({path!r}, 'w')]]",
    "countdown": "open({path!r}, 'w')",
    "puzzle24": "open({path!r}, 'w')",
}


@pytest.mark.parametrize("task", HARM)
def test_no_answer_is_run(task, reasoning_gym, tmp_path):
    (entry,) = entries(reasoning_gym, task, 1)
    path = tmp_path / "run"
    answer = HARM[task].format(path=str(path))
    found = judged(ReasoningGymReward(""), ["p"], [answer], entry=[entry])
    assert not path.exists()
    assert found[0] <= 0.01
    made = reasoning_gym.create_dataset(task, size=1, seed=1)
    made.score_answer(answer, entry)
    assert path.exists(), "the task runs nothing any more: take it off the list"


JAILBREAKS = [
    "[0 for __builtins__['len'] in [exec]]",
    "[0 for x.y in z]",
    "(lambda: 0)()",
    "f'{exit()}'",
    "9**9**9",
    "9 * * 9",
    "9*\n*9",
    "().__class__",
    "[1](2)",
    "a.b",
    "x[0]",
    "__import__('os')",
    "-" * 900 + "x.y",
    "[" * 5_000,
    "[1," * 2_000,
    "9" * 5_000 + "+1",
    "1 if (x := 2) else 3",
]


@pytest.mark.parametrize("text", JAILBREAKS)
def test_what_is_more_than_words_numbers_and_lists(text):
    assert not _is_list(text) or text.isdigit()
    assert not _is_sum(text)


def test_words_numbers_and_lists_are_read(reasoning_gym):
    assert all(map(_is_list, ["1 2 -3", "_ _ Q\n_ Q _", "ABCDE", "['a', 'b']", "[[1, -2.5]]", ""]))
    assert all(map(_is_sum, ["94*4 - 61 - 6", "(1 + 2.5) / 3", "-2 * -3"]))
    (entry,) = entries(reasoning_gym, "string_insertion", 1)
    reward = ReasoningGymReward("")
    as_list = str(list(entry["answer"]))
    said = [entry["answer"], as_list, "ABC"]
    assert judged(reward, ["p"] * 3, said, entry=[entry] * 3) == pytest.approx([1.0, 0.1, 0.0])
    (entry,) = entries(reasoning_gym, "countdown", 1)
    said = [entry["answer"], "1 + 1", "x"]
    assert judged(reward, ["p"] * 3, said, entry=[entry] * 3) == pytest.approx([1.0, 0.05, 0.01])
    big = entries(reasoning_gym, "spiral_matrix", 1, min_n=40, max_n=40)
    assert judged(reward, ["p"], [big[0]["answer"]], entry=big) == [1.0]  # a long right answer


REFUSED = ("simple_integration", "intermediate_integration", "polynomial_multiplication")


@pytest.mark.parametrize("task", REFUSED)
def test_tasks_that_run_formulas_are_refused(task, reasoning_gym):
    (entry,) = entries(reasoning_gym, task, 1)
    with pytest.raises(ConfigurationError, match=f"rule of reasoning-gym's {task} runs answers"):
        judged(ReasoningGymReward(""), ["p"], ["x"], entry=[entry])


def test_all_other_tasks_give_the_right_answer_all(reasoning_gym):
    """But for those that say of none that it is right; scores are those of the task itself."""
    reward = ReasoningGymReward("")
    for task in ("leg_counting", "number_sorting", "n_queens", "puzzle24", "binary_matrix"):
        rows = entries(reasoning_gym, task)
        said = [row["answer"] for row in rows]
        assert judged(reward, ["p"] * 2, said, entry=rows) == [1.0, 1.0], task


def test_entries_that_are_none(reasoning_gym):
    reward = ReasoningGymReward()
    for wrong in ("text", None, {}, {"metadata": {}}):
        with pytest.raises(ConfigurationError, match="'entry' must hold entries of reasoning-gym"):
            judged(reward, ["p"], ["x"], entry=[wrong])
    strange = {"metadata": {"source_dataset": "leg_countin"}, "answer": "1"}
    with pytest.raises(ConfigurationError, match=r"no task 'leg_countin'; nearest .*leg_counting"):
        judged(reward, ["p"], ["x"], entry=[strange])


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ConfigurationError, match=r"pip install rl-lightning\[tokens\]"):
        ReasoningGymReward()


def test_a_stand_in_for_the_package(monkeypatch):
    """What is asked of it, where it is not installed."""

    class Task:
        def __init__(self, **config):
            self.config = config

        def score_answer(self, answer, entry):
            return self.config.get("most", 1.0) * (answer == entry["answer"])

    package = SimpleNamespace(
        factory=SimpleNamespace(DATASETS={"echo": None}),
        create_dataset=lambda name, **config: Task(**config),
    )
    monkeypatch.setitem(sys.modules, "reasoning_gym", package)
    entry = {"answer": "1", "metadata": {"source_dataset": "echo"}}
    said = ["<answer>0</answer><answer> 1\n</answer>", "<answer>2</answer>", "1"]
    reward = ReasoningGymReward()
    assert judged(reward, ["p"] * 3, said, entry=[entry] * 3) == [1.0, 0.0, 0.0]
    configs = [{"most": 0.5}] * 3
    assert judged(reward, ["p"] * 3, said, entry=[entry] * 3, config=configs)[0] == 0.5
