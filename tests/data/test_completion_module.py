"""Recorded completions, to imitate and to compare."""

import json
import warnings

import pytest
import torch
from token_tools import characters, letters_in, make, recorded
from training import fit, make_trainer

from rl_lightning import CompletionDataModule, RankedPrompts, StringTasks
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


def test_prompts_alone_validate_by_rewards(model):
    asked = [{"prompt": "1:", "answer": "a"}, {"prompt": "2:", "answer": "b"}]
    given = {"total_updates": 20, "updates_per_epoch": 20, "val_prompts": asked}
    _, after = trained(make("DPO", model), recorded(rewards=[letters_in], **given))
    assert "val/reward" in after
    assert "val/loss" not in after
    with pytest.raises(ConfigurationError, match="no text in the column 'chosen'"):
        trained(make("DPO", model), recorded(**given))  # without rewards nothing would be told
    half = [{"prompt": "1:", "chosen": "a"}, {"prompt": "2:"}]
    with pytest.raises(ConfigurationError, match=r"data.val_prompts: .* the column 'rejected'"):
        trained(make("DPO", model), recorded(rewards=[letters_in], **given | {"val_prompts": half}))


def test_what_a_model_wrote_is_what_it_learns_to_prefer(model, tmp_path):
    path = tmp_path / "x.jsonl"
    lines = [
        {"prompt": f"{i}:", "completion": text, "reward": text.count("a")}
        for i in range(8)
        for text in ("bcd", "aab", "abc")
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    agent, rows = make("DPO", model), RankedPrompts(str(path))
    data = CompletionDataModule(
        rows, batch_size=4, total_updates=30, updates_per_epoch=30, max_new_tokens=6, val_share=0.2
    )
    _, after = trained(agent, data)
    assert after["val/accuracy"] == 1.0
    assert after["val/loss"] < 0.5


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
        (
            [{"prompt": "1:", "completion": "a\ud800"}],
            {},
            r"prompt 1: its column 'completion' holds '\\ud800' at 2, half of a character",
        ),
        (
            [{"prompt": "1:", "completion": "a", "hint": "\udc00"}],
            {"template": "{hint}{prompt}"},
            r"prompt 1, in data.template, holds '\\udc00' at 1",
        ),
        (
            [{"prompt": "1" * 60, "completion": "a"}],
            {},
            "prompt 1 has 61 tokens, and there is room",
        ),
    ],
)
def test_rows_that_cannot_be_learned_are_named(rows, given, message, model):
    data = CompletionDataModule(rows, val_share=0.0, max_new_tokens=6, **given)
    with pytest.raises(ConfigurationError, match=message):
        fit(make("SFT", model), data)


@pytest.mark.parametrize("row", range(10))
def test_rows_are_called_by_their_places_in_what_was_read(row, model):
    rows = [{"prompt": f"{i}:", "completion": "a"} for i in range(10)]
    rows[row]["completion"] = "a" * 9
    data = CompletionDataModule(rows, val_share=0.3, max_new_tokens=6)
    with pytest.raises(ConfigurationError, match=f"data.prompts: prompt {row + 1}: its column"):
        fit(make("SFT", model), data, limit_val_batches=1.0)


def test_half_a_pair_is_named(model):
    rows = [{"prompt": "1:", "chosen": "a"}]
    with pytest.raises(ConfigurationError, match="no text in the column 'rejected', but None"):
        fit(make("DPO", model), CompletionDataModule(rows, val_share=0.0, max_new_tokens=6))


def test_held_out_rows_are_looked_at_before_training_where_they_are_used(model):
    agent, rows = make("SFT", model), [{"prompt": "1:", "completion": "a" * 9}]
    with pytest.raises(ConfigurationError, match=r"data.val_prompts: prompt 1: .* has 10 tokens"):
        fit(agent, recorded(val_prompts=rows), limit_val_batches=1.0)
    assert agent.updates == 0
    assert fit(make("SFT", model), recorded(val_prompts=rows), limit_val_batches=0).updates == 10


def test_one_data_module_serves_agents_of_different_columns_and_tokenizers(model, tmp_path):
    data, trainer = recorded(), make_trainer(limit_val_batches=1.0)
    for name in ("SFT", "DPO"):
        alone = trainer.validate(make(name, model), recorded(), verbose=False)
        assert trainer.validate(make(name, model), data, verbose=False) == alone
    longer = characters(tmp_path / "other", letters="xyz")
    alone = trainer.validate(make("SFT", longer), recorded(), verbose=False)
    assert trainer.validate(make("SFT", longer), data, verbose=False) == alone


def test_a_pass_has_each_row_once_in_batches_as_asked_for(model):
    agent, data = make("SFT", model), recorded(batch_size=2, total_updates=8, updates_per_epoch=3)
    seen, own = [], agent.prepare_completions

    def keep(batch, *args, **kwargs):
        seen.extend(tuple(row) for row in batch["prompt"].tolist())
        assert batch.batch_size == (2,)
        return own(batch, *args, **kwargs)

    agent.__dict__["prepare_completions"] = keep
    trainer = make_trainer()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(agent, data)
    assert (agent.updates, data.frames, trainer.current_epoch) == (9, 9, 3)  # whole epochs
    assert len(seen) == 18
    assert len(set(seen[:8])) == len(set(seen[8:16])) == 8
    assert seen[:8] != seen[8:16]


def test_means_are_those_of_rows_whatever_the_batches(model):
    rows = [{"prompt": f"{i}:", "completion": "ab" * (i % 2 + 1)} for i in range(7)]
    losses = []
    for size in (32, 3):
        data = recorded(val_prompts=rows, val_batch=size)
        trainer = make_trainer(limit_val_batches=1.0)
        losses.append(trainer.validate(make("SFT", model), data, verbose=False)[0]["val/loss"])
        assert len(data.val_dataloader()) == -(-7 // size)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_going_on_with_other_rows_is_told(model, tmp_path):
    trainer = make_trainer()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(make("SFT", model), recorded(total_updates=5))
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    with pytest.warns(UserWarning, match="training began with 8 prompts, and here are 7"):
        make_trainer().fit(
            make("SFT", model), recorded(val_share=0.3), ckpt_path=str(tmp_path / "half.ckpt")
        )


@pytest.mark.parametrize("sizes", [(2, 4), (4, 2), (3, 3)])
def test_going_on_with_another_batch_size_has_no_row_twice(sizes, model, tmp_path):
    seen = []

    def watched():
        agent = make("SFT", model)
        own = agent.prepare_completions

        def keep(batch, *args, **kwargs):
            seen.extend(tuple(row) for row in batch["prompt"].tolist())
            return own(batch, *args, **kwargs)

        agent.__dict__["prepare_completions"] = keep
        return agent

    first, second = sizes
    known = {"val_share": 0.0, "updates_per_epoch": 1, "seed": 3}
    trainer = make_trainer()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(watched(), recorded(batch_size=first, total_updates=3, **known))
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    data = recorded(batch_size=second, total_updates=6, **known)
    fit(watched(), data, ckpt_path=str(tmp_path / "half.ckpt"))
    assert len(seen) == 3 * (first + second)
    assert len(set(seen[:10])) == 10
    assert set(seen[10:20]) <= set(seen[:10])
    assert len(set(seen[10:])) == len(seen[10:])
    whole = list(seen)
    seen.clear()
    fit(watched(), recorded(batch_size=1, total_updates=len(whole), **known))
    assert seen == whole


def test_no_reward_chooses_among_recorded_completions(model):
    said = r"model.min_reward: 0.5, and recorded .*RankedPrompts\(file, least_reward=0.5\)"
    with pytest.raises(ConfigurationError, match=said):
        fit(make("SFT", model, min_reward=0.5), recorded())


@pytest.mark.parametrize("rewards", [None, [letters_in]])
@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_an_evaluation_of_nothing_is_refused(stage, rewards, model):
    data = recorded(val_share=0.0, rewards=rewards)
    agent, trainer = make("SFT", model), make_trainer(limit_val_batches=1.0)
    with pytest.raises(ConfigurationError, match=f"{stage}: there are no prompts for it"):
        getattr(trainer, stage)(agent, data)
    assert fit(agent, data, limit_val_batches=1.0).updates == 10


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
    sizes = {len(StringTasks("copy", 200, 4, shortest=2).columns(i)["answer"]) for i in range(200)}
    assert sizes == {2, 3, 4}
    mixed = StringTasks("copy:5+add", 20, 2)
    assert {len(mixed.columns(i)["answer"]) for i in range(0, 20, 2)} == {5}
    assert {len(mixed.prompt(i)) for i in range(1, 20, 2)} == {len("12+34=")}


def test_prompts_differ_and_so_do_seeds():
    asked = [StringTasks(size=200, seed=seed) for seed in (0, 0, 1)]
    texts = [[one.prompt(i) for i in range(200)] for one in asked]
    assert len(set(texts[0])) == 200
    assert texts[0] == texts[1] != texts[2]
    assert {len(text) for text in texts[0]} == {len("copy 1234=")}
    assert len(StringTasks(size=50, length=1)) == 50  # of which there are ten


def test_parts_share_no_prompt():
    def texts(part, seed, size=300):
        tasks = StringTasks("copy+sort+add", size, 2, shortest=1, seed=seed, part=part)
        return {tasks.prompt(i) for i in range(size)}

    train, test = texts("train", 0), texts("test", 1)
    assert not train & test
    assert not train & texts("test", 0)
    assert texts("all", 0) & test
    assert len(train) > len(test) > 30
    with pytest.raises(
        ConfigurationError, match="part='test': there is no prompt in it like 'copy"
    ):
        StringTasks("copy", 5, 1, part="test")


@pytest.mark.parametrize(
    ("given", "message"),
    [({"size": 0}, "size"), ({"length": 0}, "length"), ({"shortest": 5}, "shortest"),
     ({"seed": -1}, "seed"), ({"part": "most"}, "part"),
     ({"task": "copy:0"}, "length"), ({"task": "copy:x"}, "length"), ({"task": "copy:²"}, "length"),
     ({"task": 5}, "task='5': use one of copy, sort, add"),
     ({"task": ["copy", "add"]}, r"task=\['copy', 'add'\]: write several .* between, copy\+add"),
     ({"task": "copy:5+add:2", "shortest": 3}, "shortest")],
)  # fmt: skip
def test_numbers_of_tasks_that_cannot_be_are_named(given, message):
    with pytest.raises(ConfigurationError, match=f"^{message}"):
        StringTasks(**given)


def test_tasks_that_there_are_not_are_named():
    with pytest.raises(ConfigurationError, match="task='mix': use one of copy, sort, add"):
        StringTasks("copy+mix")
