"""How good completions of held-out prompts are, and how prompts are put to a model."""

import warnings

import pytest
import torch
from token_tools import characters, make, prompts
from training import fit, make_trainer
from transformers import AutoTokenizer

from rl_lightning.callbacks.text import TextPanel
from rl_lightning.core.errors import ConfigurationError
from rl_lightning.maths.token_advantages import pass_at_k


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return characters(tmp_path_factory.mktemp("model") / "characters")


def weights(agent):
    return torch.cat([p.detach().flatten() for p in agent.parameters()])


@pytest.mark.parametrize("tune", ["full", "lora"])
def test_evaluation_changes_nothing_of_training(tune, model):
    plain, judged = (
        fit(make("GRPO", model, tune=tune), prompts(val_samples=2), limit_val_batches=share)
        for share in (0, 1.0)
    )
    assert weights(judged).equal(weights(plain))


def test_validation_is_the_same_each_time_and_leaves_random_numbers_alone(model):
    agent, data = make("GRPO", model), prompts(val_samples=32, success_threshold=0.2)
    trainer = make_trainer(limit_val_batches=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(5)
        before = torch.get_rng_state()
        one, other = (trainer.validate(agent, data, verbose=False)[0] for _ in range(2))
        assert torch.get_rng_state().equal(before)
        tested = trainer.test(agent, data, verbose=False)[0]
    assert one == other
    assert one["val/pass@32"] >= one["val/pass@1"]
    assert {"val/reward", "val/reward_letters_in", "val/length", "val/cut"} <= set(one)
    assert tested["test/reward"] != one["val/reward"]
    other = prompts(val_samples=32, val_seed=7)
    assert trainer.validate(agent, other, verbose=False)[0]["val/reward"] != one["val/reward"]
    assert "val/pass@1" not in trainer.validate(agent, other, verbose=False)[0]


def test_prediction_says_what_was_asked_written_and_paid(model):
    agent, data = make("GRPO", model), prompts(val_samples=2)
    (lines,) = make_trainer().predict(agent, data)
    assert [line["sample"] for line in lines] == [0, 1, 0, 1]
    assert all(line["reward"] == pytest.approx(line["completion"].count("a") / 6) for line in lines)
    assert {line["prompt"] for line in lines} == {data.tables[1].prompt(i) for i in range(2)}


def test_a_table_of_completions_is_shown(model):
    data = prompts(val_table=1)
    trainer = make_trainer(limit_val_batches=1.0)
    trainer.validate(make("GRPO", model), data, verbose=False)
    (batch,) = data.val_dataloader()
    (row,) = batch["transcript"]
    assert row["prompt"] == data.tables[1].prompt(0)
    assert row["reward"] == batch["lines"][0]["reward"]
    data.val_table = 0
    data._eval_loaders.clear()
    (batch,) = data.val_dataloader()
    assert "transcript" not in batch


def validated(agent, data):
    trainer = make_trainer(limit_val_batches=1.0)
    return trainer.validate(agent, data, verbose=False)[0]


def paid(prompts, completions):
    """What stands in the prompt."""
    return [float(prompt[0]) for prompt in prompts]


def test_own_prompts_of_evaluation_and_their_batches(model):
    rows = [f"{i}:" for i in (1, 2, 6, 7, 9)]
    for size, batches in ((32, 1), (2, 3)):
        data = prompts(val_prompts=rows, val_batch=size, rewards=[paid])
        assert validated(make("GRPO", model), data)["val/reward"] == 5.0
        assert len(data.val_dataloader()) == batches
    assert len(data.tables[0]) == 10  # nothing is held out of the prompts of training


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
def test_so_many_prompts_are_held_out(share, model):
    data = prompts(val_share=share, total_prompts=4)
    fit(make("GRPO", model), data)
    assert [len(table) for table in data.tables] == [10 - 10 * share, 10 * share]


def test_evaluation_is_greedy_unless_it_has_a_temperature(model):
    def written(**given):
        data = prompts(val_prompts=[f"{i}:" for i in range(8)], **given)
        (lines,) = make_trainer().predict(make("GRPO", model), data)
        return [line["completion"] for line in lines]

    assert written() == written(val_seed=3) == written(val_temperature=0.0, temperature=0.7)
    assert written(val_temperature=1.0) != written(val_temperature=1.0, val_seed=3)
    assert written(val_temperature=1.0) != written()
    assert written(val_temperature=1e-4) == written()


def test_shares_of_right_ones_are_means_over_prompts(model):
    data = prompts(val_prompts=[f"{i}:" for i in range(7)], val_samples=3, val_batch=2,
                   success_threshold=0.15)  # fmt: skip
    agent = make("GRPO", model)
    told = validated(agent, data)
    batches = make_trainer().predict(agent, data)
    seeds = data.val_dataloader()  # the same completions again, as lines
    lines = [line for batch in seeds for line in batch["lines"]]
    right = torch.tensor([line["reward"] >= 0.15 for line in lines]).view(7, 3)
    assert 0 < right.sum() < 21
    assert told["val/pass@1"] == pytest.approx(right.float().mean().item())
    assert told["val/pass@3"] == pytest.approx(right.any(1).float().mean().item())
    assert sum(map(len, batches)) == 21


def test_tables_of_completions_go_on_over_batches(model):
    rows = [f"{i}:" for i in range(7)]
    for most, shown in ((5, [2, 2, 1, 0]), (0, [0] * 4), (8, [2, 2, 2, 1])):
        data = prompts(val_prompts=rows, val_batch=2, val_table=most, val_samples=2)
        validated(make("GRPO", model), data)
        assert [len(batch.get("transcript", ())) for batch in data.val_dataloader()] == shown


def test_the_text_panel_shows_one_table_of_an_evaluation(model, tmp_path):
    from lightning.pytorch.loggers import TensorBoardLogger
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    data = prompts(val_prompts=[f"{i}:" for i in range(7)], val_batch=2, val_table=5)
    logger = TensorBoardLogger(str(tmp_path))
    trainer = make_trainer(limit_val_batches=1.0, logger=logger, callbacks=[TextPanel()])
    for _ in range(2):
        trainer.validate(make("GRPO", model), data, verbose=False)
    logger.experiment.flush()
    found = EventAccumulator(logger.log_dir).Reload()
    events = found.Tensors("val/completions/text_summary")
    texts = [event.tensor_proto.string_val[0].decode() for event in events]
    assert [text.count("\n") for text in texts] == [1 + 5] * 2
    assert all(f"{i}:" in texts[0] for i in range(5))


@pytest.fixture(scope="module")
def chatty(tmp_path_factory):
    folder = characters(tmp_path_factory.mktemp("chatty") / "characters")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'][0] }}{{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}a:{% endif %}"
    )
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({}, "7:"),
        ({"chat": True}, "<unk>7:\na:"),
        ({"chat": True, "system": "be"}, "<unk>be\n<unk>7:\na:"),
        ({"chat": True, "template": "a{prompt}"}, "<unk>a7:\na:"),
        ({"val_prompts": [[{"role": "user", "content": "7:"}]]}, "<unk>7:\na:"),
    ],
)
def test_prompts_are_chats_where_that_is_said(given, text, chatty):
    given = {"val_prompts": ["7:"], **given}
    seen = []

    def watch(prompts, completions):
        seen.extend(prompts)
        return [0.0] * len(prompts)

    data = prompts(rewards=[watch], **given)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make_trainer().predict(make("GRPO", chatty), data)
    (ids,) = data.cut("val").asked([0]).ids
    tokenizer = data.cut("val").tokens.tokenizer
    assert tokenizer.decode(ids).replace("<s>", "") == text
    assert seen == given["val_prompts"]  # rewards read what was asked, not how it was put


def test_held_out_prompts_are_looked_at_before_training_where_they_are_used(model):
    agent, data = make("GRPO", model), prompts(val_prompts=["1" * 70])
    with pytest.raises(ConfigurationError, match=r"data.val_prompts: prompt 1 has 71 tokens"):
        fit(agent, data, limit_val_batches=1.0)
    assert agent.updates == 0
    assert fit(make("GRPO", model), prompts(val_prompts=["1" * 70])).frames == 16


def test_the_chance_that_one_of_several_is_right():
    right = torch.tensor([0, 1, 2, 4])
    assert pass_at_k(right, 4, 1).tolist() == pytest.approx([0.0, 0.25, 0.5, 1.0])
    assert pass_at_k(right, 4, 2).tolist() == pytest.approx([0.0, 0.5, 5 / 6, 1.0])
    assert pass_at_k(right, 4, 4).tolist() == pytest.approx([0.0, 1.0, 1.0, 1.0])
    with pytest.raises(ConfigurationError, match="k must be between 1 and 4"):
        pass_at_k(right, 4, 5)
