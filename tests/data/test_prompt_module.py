"""Prompts, completions and rewards, as a trainer is fed with them."""

import copy
import inspect
import warnings
from typing import ClassVar

import pytest
import torch
from token_tools import characters, make, prompts
from training import fit, make_trainer

from rl_lightning import PPO, PromptDataModule
from rl_lightning.core.errors import ConfigurationError, RunError
from rl_lightning.data import RolloutDataModule
from rl_lightning.data.prompts.asked import PromptTokens
from rl_lightning.data.prompts.table import RowPrompts
from rl_lightning.data.token_module import TokenDataModule
from rl_lightning.llm.generators import TransformersGenerator


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return characters(tmp_path_factory.mktemp("model") / "characters")


def weights(agent):
    return torch.cat([p.detach().flatten() for p in agent.parameters()])


def steps(agent, data, **trainer):
    """The batches that an agent is trained on."""
    seen, prepare = [], agent.prepare_completions

    def keep(batch, rows, once):
        seen.append((batch.clone(), rows, once))
        return prepare(batch, rows, once)

    agent.__dict__["prepare_completions"] = keep
    fit(agent, data, **trainer)
    return seen


LEARNERS = {
    "GRPO": {},
    "RLOO": {"kl_coef": 0.01},
    "REINFORCEPlusPlus": {},
    "TokenPPO": {"kl_coef": 0.01},
    "SFT": {"keep": "best"},
}


@pytest.mark.parametrize("name", LEARNERS)
def test_rewards_are_learned(name, model):
    agent = make(name, model, **LEARNERS[name])
    data = prompts(total_prompts=200, steps_per_epoch=25, success_threshold=0.9)
    trainer = make_trainer(limit_val_batches=1.0, log_every_n_steps=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = trainer.validate(agent, data, verbose=False)[0]
        trainer.fit(agent, data)
    after = {k: float(v) for k, v in trainer.callback_metrics.items()}
    assert before["val/reward"] < 0.5
    assert after["val/reward"] > 0.8
    assert after["val/pass@1"] == (after["val/reward"] > 0.9) or 0 < after["val/pass@1"] < 1
    assert after["train/reward"] == pytest.approx(after["reward/letters_in"])


CASES = {
    "grpo": ("GRPO", {"kl_coef": 0.1}, {}),
    "grpo lora": ("GRPO", {"kl_coef": 0.1, "tune": "lora", "lora_rank": 2}, {}),
    "passes": ("GRPO", {}, {"passes": 2, "minibatch_prompts": 2}),
    "passes lora": ("GRPO", {"tune": "lora"}, {"passes": 2, "minibatch_prompts": 2}),
    "critic": ("TokenPPO", {"kl_coef": 0.1}, {"passes": 2, "minibatch_prompts": 2}),
    "plus plus": ("REINFORCEPlusPlus", {}, {"group_size": 1}),
}


@pytest.mark.parametrize("case", CASES)
def test_going_on_is_bit_for_bit_as_without_the_interruption(case, model, tmp_path):
    name, known, given = CASES[case]
    whole = fit(make(name, model, **known), prompts(total_prompts=32, **given))
    trainer = make_trainer()
    first = make(name, model, **known)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(first, prompts(total_prompts=16, **given))
        trainer.save_checkpoint(tmp_path / "half.ckpt")
    again = make(name, model, **known)
    fit(again, prompts(total_prompts=32, **given), ckpt_path=str(tmp_path / "half.ckpt"))
    assert again.frames == whole.frames == 32
    assert weights(again).equal(weights(whole))
    assert not weights(again).equal(weights(first))


def test_going_on_with_other_prompts_is_told(model, tmp_path):
    trainer = make_trainer()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(make("GRPO", model), prompts())
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    other = prompts(val_prompts=["8:"], total_prompts=32)
    with pytest.warns(UserWarning, match="training began with 8 prompts, and here are 10"):
        make_trainer().fit(make("GRPO", model), other, ckpt_path=str(tmp_path / "half.ckpt"))


def test_a_pass_has_each_prompt_once_and_passes_differ(model):
    data = prompts(val_share=0.0, prompts_per_step=5, total_prompts=20)
    seen = steps(make("GRPO", model), data)
    asked = [tuple(row.tolist()) for batch, *_ in seen for row in batch["prompt"]]
    assert len(set(asked[:10])) == len(set(asked[10:])) == 10
    assert asked[:10] != asked[10:]
    data = prompts(val_share=0.0, prompts_per_step=5, total_prompts=5, seed=3)
    ((batch, *_), *_) = steps(make("GRPO", model), data)
    assert [tuple(row.tolist()) for row in batch["prompt"]] != asked[:5]


def test_held_out_prompts_are_never_trained_on(model):
    data = prompts(total_prompts=64)
    seen = steps(make("GRPO", model), data)
    tokenizer = data.cut("train").tokens.tokenizer
    trained = {tokenizer.decode(row[1:]) for batch, *_ in seen for row in batch["prompt"].tolist()}
    held = {data.tables[1].prompt(i) for i in range(2)}
    assert len(trained) == 8
    assert trained.isdisjoint(held)


def test_the_budget_is_in_prompts_and_an_epoch_in_steps(model):
    agent, data = make("GRPO", model), prompts(total_prompts=24, steps_per_epoch=3)
    trainer = make_trainer()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(agent, data)
    assert (agent.frames, trainer.current_epoch, agent.updates) == (24, 2, 6)
    agent = fit(make("GRPO", model), prompts(passes=3, minibatch_prompts=1))
    assert (agent.frames, agent.updates) == (16, 4 * 3 * 4)


def test_batches_are_as_they_are_asked_for(model):
    given = {"prompts_per_step": 2, "group_size": 3, "temperature": 0.5, "max_new_tokens": 4}
    ((batch, rows, once), *_) = steps(make("GRPO", model), prompts(**given, total_prompts=4))
    assert batch["ids"].shape[:2] == (2, 3)
    assert batch["ids"].shape[2] <= 4
    assert batch["temperature"].tolist() == [0.5, 0.5]
    assert (rows, once) == (2, True)
    ((_, rows, once), *_) = steps(make("GRPO", model), prompts(minibatch_prompts=2))
    assert (rows, once) == (2, False)


@pytest.mark.parametrize(
    "knob",
    [{"top_k": 1}, {"top_p": 0.1}, {"stop": ["a", "b", "c", "1"]}, {"temperature": 0.01},
     {"seed": 3}, {"template": "0{prompt}1"}],
)  # fmt: skip
def test_every_knob_of_sampling_changes_what_is_written(knob, model):
    written = []
    for given in ({}, knob):
        torch.manual_seed(0)
        ((batch, *_), *_) = steps(make("GRPO", model), prompts(**given, total_prompts=4))
        written.append((batch["prompt"].tolist(), batch["ids"].tolist()))
    assert written[0] != written[1]


def test_another_agent_s_tokenizer_cuts_anew(model, tmp_path):
    data = prompts()
    fit(make("GRPO", model), data)
    other = characters(tmp_path / "other", hidden=16)
    make_trainer(limit_val_batches=1.0).validate(make("GRPO", other), data, verbose=False)
    assert data.cut("val").tokens is data.model.backbone.tokens


def test_a_policy_without_anything_to_learn_from_is_warned_of(model):
    def nothing(prompts, completions):
        return [0.0] * len(completions)

    with pytest.warns(UserWarning, match="100% of the groups all completions have the same"):
        make_trainer(log_every_n_steps=1).fit(make("GRPO", model), prompts(rewards=[nothing]))


def test_a_reward_that_fails_names_itself(model):
    def broken(prompts, completions):
        return [1.0]

    with pytest.raises(RunError, match=r"broken returned 1 numbers for 16 completions"):
        fit(make("GRPO", model), prompts(rewards=[broken]))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"minibatch_prompts": 3}, "data.minibatch_prompts: 3 does not divide"),
        ({"temperature": 0.0}, "data.temperature: 0 writes the same completion"),
        ({"rewards": []}, "data.rewards: there is none"),
        ({"val_samples": 2, "val_temperature": 0.0}, "data.val_samples: 2 greedy completions"),
        ({"system": "Be short."}, "data.system: it begins a chat"),
        ({"chat": True}, "has no chat template"),
        ({"max_new_tokens": 64}, "data.max_new_tokens: 64 leaves no room"),
        ({"max_new_tokens": 61}, "has 3 tokens, and there is room for 3|there is room for"),
        ({"template": "{answer}:"}, "no field {answer}"),
        ({"group_size": 1}, "data.group_size: 1, and GRPO compares"),
    ],
)
def test_what_cannot_be_is_named(given, message, model):
    if given == {"max_new_tokens": 61}:
        given = {**given, "template": "1234{prompt}:"}
    with pytest.raises(ConfigurationError, match=message):
        fit(make("GRPO", model), prompts(**given))


KNOBS = {
    "prompts", "prompts_per_step", "group_size", "minibatch_prompts", "passes", "steps_per_epoch",
    "total_prompts", "temperature", "top_k", "top_p", "val_prompts", "val_share", "rewards",
    "template", "chat", "system", "max_new_tokens", "stop", "success_threshold", "val_samples",
    "val_temperature", "val_batch", "val_table", "generator", "record", "seed", "val_seed",
}  # fmt: skip


def test_all_arguments_are_tested_here():
    own = set(inspect.signature(PromptDataModule.__init__).parameters)
    shared = set(inspect.signature(TokenDataModule.__init__).parameters)
    assert (own | shared) - {"self", "shared", "total_frames"} == KNOBS


def test_another_generator_writes(model):
    class Writer(TransformersGenerator):
        asked: ClassVar[list[tuple[int, int, int]]] = []

        def __call__(self, backbone, prompts, samples, sampling, version):
            self.asked.append((len(prompts), samples, version))
            return super().__call__(backbone, prompts, samples, sampling, version)

    given = {"passes": 2, "minibatch_prompts": 2, "generator": Writer()}
    fit(make("GRPO", model), prompts(total_prompts=12, **given))
    # The version counts updates: four of each step.
    assert Writer.asked == [(4, 4, 0), (4, 4, 4), (4, 4, 8), (4, 4, 12)]


@pytest.mark.parametrize("wrong", [3, "vllm", TransformersGenerator])
def test_what_cannot_write_is_refused(wrong):
    with pytest.raises(ConfigurationError, match=r"data\.generator must be an object called with"):
        prompts(generator=wrong)


def test_wrong_pairs_of_agent_and_data_are_named(model):
    data = RolloutDataModule("CartPole-v1", num_envs=1, rollout_steps=8, total_frames=8)
    with pytest.raises(ConfigurationError, match="PPO does not learn from completions"):
        fit(PPO(data.spec), prompts())
    with pytest.raises(ConfigurationError, match="GRPO does not learn from rollouts"):
        fit(make("GRPO", model), data)
    with pytest.raises(ConfigurationError, match="DPO does not learn from completions"):
        fit(make("DPO", model), prompts())


def test_prompts_are_cut_as_they_stand(model):
    tokens = make("GRPO", model).backbone.tokens
    rows = RowPrompts([{"prompt": "ab</s>", "answer": "9"}, {"prompt": "c", "answer": "8"}])
    cut = PromptTokens(rows, tokens, template="{prompt}={answer}:")
    asked = cut.asked([1, 0])
    assert tokens.tokenizer.decode(asked.ids[0]) == "<s>c=8:"
    assert 1 not in asked.ids[1]  # the end token in a text is spelled out
    assert asked.columns == {"answer": ["8", "9"]}
    with pytest.raises(ConfigurationError, match=r"prompt 1 has \d+ tokens, and there is room"):
        cut.check(5, "so")


def test_a_copy_of_a_data_module_is_in_no_run(model):
    data = prompts()
    fit(make("GRPO", model), data)
    other = copy.deepcopy(data)
    assert other.frames == 0
    assert isinstance(other, PromptDataModule)


@pytest.mark.parametrize("own", [None, 3])
def test_the_order_of_prompts_is_by_the_global_seed_unless_there_is_one(own, model, monkeypatch):
    asked = []
    answer = PromptDataModule.answer

    def keep(self, stage, rows, *rest):
        asked.append(tuple(rows))
        return answer(self, stage, rows, *rest)

    monkeypatch.setattr(PromptDataModule, "answer", keep)

    def order(seed, **more):
        asked.clear()
        agent, data = make("GRPO", model), prompts(seed=own)
        torch.manual_seed(seed)
        fit(agent, data, **more)
        held = [data.tables[1].prompt(i) for i in range(len(data.tables[1]))]
        return tuple(asked), held

    one, two = order(1), order(2)
    assert order(1) == one
    assert (one[0] == two[0]) == (own is not None)
    assert one[1] == two[1]  # what is held out is the same in all runs


def test_an_interrupted_run_keeps_its_order_under_another_seed(model, tmp_path):
    def data(total):
        return prompts(total_prompts=total)

    whole, agent = data(32), make("GRPO", model)
    torch.manual_seed(1)
    fit(agent, whole)
    expected = whole.drawn(16, 8)
    trainer, first = make_trainer(), data(16)
    agent = make("GRPO", model)
    torch.manual_seed(1)
    trainer.fit(agent, first)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    again = data(32)
    other = make("GRPO", model)
    torch.manual_seed(2)
    fit(other, again, ckpt_path=str(tmp_path / "half.ckpt"))
    assert again.drawn(16, 8) == expected
