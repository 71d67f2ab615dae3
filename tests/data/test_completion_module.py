"""Recorded completions, to imitate and to compare."""

import warnings

import pytest
import torch
from token_tools import characters, letters_in, make, recorded
from training import fit, make_trainer

from rl_lightning import CompletionDataModule, StringTasks
from rl_lightning.core.errors import ConfigurationError


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return characters(tmp_path_factory.mktemp("model") / "characters")


def weights(agent):
    return torch.cat([p.detach().flatten() for p in agent.parameters()])


def trained(agent, data):
    trainer = make_trainer(limit_val_batches=1.0, log_every_n_steps=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = trainer.validate(agent, data, verbose=False)[0]
        trainer.fit(agent, data)
        after = trainer.validate(agent, data, verbose=False)[0]
    return before, after


def test_completions_are_imitated(model):
    data = recorded(total_updates=100, updates_per_epoch=100, rewards=[letters_in])
    before, after = trained(make("SFT", model), data)
    assert after["val/loss"] < 0.8 * before["val/loss"]
    assert before["val/reward"] < after["val/reward"] == pytest.approx(1 / 6)  # "ab3": one a
    assert after["val/cut"] == 0.0


def test_held_out_rows_alone_are_enough(model):
    before, after = trained(make("SFT", model), recorded(total_updates=20, updates_per_epoch=20))
    assert after["val/loss"] < before["val/loss"]
    assert "val/reward" not in after


def test_preferences_are_learned(model):
    before, after = trained(make("DPO", model), recorded(total_updates=20, updates_per_epoch=20))
    assert before["val/loss"] == pytest.approx(0.6931, abs=1e-4)
    assert after["val/loss"] < 0.6
    assert after["val/accuracy"] == 1.0


@pytest.mark.parametrize("name", ["SFT", "DPO"])
def test_going_on_is_bit_for_bit_as_without_the_interruption(name, model, tmp_path):
    whole = fit(make(name, model), recorded())
    trainer, first = make_trainer(), make(name, model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(first, recorded(total_updates=5))
        trainer.save_checkpoint(tmp_path / "half.ckpt")
    again = fit(make(name, model), recorded(), ckpt_path=str(tmp_path / "half.ckpt"))
    assert again.updates == whole.updates == 10
    assert weights(again).equal(weights(whole))


def test_the_end_is_learned_unless_told_otherwise(model):
    data = recorded()
    fit(make("SFT", model), data)
    assert data.batch("train", [0])["ids"][0, 0, -1] == 1
    data = recorded(append_end=False, batch_size=2)
    fit(make("SFT", model), data)
    batch = data.batch("train", [0, 1])
    assert not (batch["ids"][batch["own"]] == 1).any()
    assert batch["own"].sum().item() == 6


@pytest.mark.parametrize(
    ("rows", "given", "message"),
    [
        ([{"prompt": "1:"}, {"prompt": "2:"}], {}, "no text in the column 'completion', but None"),
        ([{"prompt": "1:", "completion": "a" * 9}], {}, "has 10 tokens, and data.max_new_tokens"),
        ([{"prompt": "1:", "completion": ""}], {"append_end": False}, "has 0 tokens"),
    ],
)
def test_rows_that_cannot_be_learned_are_named(rows, given, message, model):
    data = CompletionDataModule(rows, val_share=0.0, max_new_tokens=6, **given)
    with pytest.raises(ConfigurationError, match=message):
        fit(make("SFT", model), data)


def test_who_learns_from_no_recorded_completions_is_named(model):
    with pytest.raises(ConfigurationError, match="GRPO does not learn from recorded completions"):
        fit(make("GRPO", model), recorded())


# --- tasks of strings -------------------------------------------------------------------------


def test_answers_are_right():
    tasks = StringTasks("copy+sort+add", size=30, length=3, shortest=1)
    kinds = set()
    for i in range(30):
        prompt, row = tasks.prompt(i), tasks.columns(i)
        assert row["answer"] == row["completion"]
        if "+" in prompt:
            a, b = map(int, prompt.rstrip("=").split("+"))
            expected = str(a + b)
        else:
            kind, digits = prompt.rstrip("=").split()
            expected = digits if kind == "copy" else "".join(sorted(digits))
        assert row["answer"] == expected
        kinds.add(prompt.split()[0] if " " in prompt else "add")
    assert kinds == {"copy", "sort", "add"}


def test_prompts_differ_and_so_do_seeds():
    asked = [StringTasks(size=200, seed=seed) for seed in (0, 0, 1)]
    texts = [[one.prompt(i) for i in range(200)] for one in asked]
    assert len(set(texts[0])) == 200
    assert texts[0] == texts[1] != texts[2]
    assert {len(text) for text in texts[0]} == {len("copy 1234=")}
    assert len(StringTasks(size=50, length=1)) == 50  # of which there are ten


def test_tasks_that_there_are_not_are_named():
    with pytest.raises(ConfigurationError, match="task='mix': use one of copy, sort, add"):
        StringTasks("copy+mix")
