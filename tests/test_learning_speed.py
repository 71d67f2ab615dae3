"""Comparisons of learning speed: what is laid over what, and the statistics by hand."""

import json
from pathlib import Path

import learning_speed
import pytest

ROOT = Path(__file__).parents[1]
COMPARISONS = sorted((ROOT / "benchmarks/comparisons").glob("*.yaml"))


def test_an_arm_is_laid_over_the_base_entry_by_entry():
    base = {"a": {"b": 1, "c": [1, 2]}, "d": {"class_path": "X", "init_args": {"e": 1}}}
    change = {"a": {"c": [3]}, "d": {"class_path": "X", "init_args": {"f": 2}}}
    assert learning_speed.laid_over(base, change) == {
        "a": {"b": 1, "c": [3]},
        "d": {"class_path": "X", "init_args": {"e": 1, "f": 2}},
    }
    other = {"d": {"class_path": "Y", "init_args": {"f": 2}}}
    assert learning_speed.laid_over(base, other)["d"] == other["d"]
    assert base["a"] == {"b": 1, "c": [1, 2]}


def runs(arm, *reached):
    return [{"arm": arm, "seed": i, "reached": r, "final": 0.5} for i, r in enumerate(reached)]


def test_a_run_that_never_reaches_the_threshold_is_the_slowest():
    found = learning_speed.statistics(
        [*runs("plain", 100, 300, None), *runs("ours", 50, 60, 70), *runs("bad", None, None, 9)],
        ["plain", "ours", "bad", "not run"],
    )
    assert list(found) == ["plain", "ours", "bad"]
    assert (found["plain"]["frames"], found["plain"]["reached"]) == (300, 2)
    assert found["plain"]["interval"] == [100, None]
    assert (found["ours"]["frames"], found["ours"]["ratio"]) == (60, pytest.approx(0.2))
    assert found["ours"]["interval"] == [50, 70]
    assert (found["bad"]["frames"], found["bad"]["ratio"]) == (None, None)
    assert "| bad | never | 0 k … never | – | 1/3 | 0.50 |" in learning_speed.table(
        {"metric": "val/success", "threshold": 0.5, "arms": found}
    )


def test_runs_that_failed_count_nowhere():
    failed = {"arm": "plain", "seed": 1, "error": "no"}
    assert learning_speed.statistics([failed], ["plain"]) == {}


def test_a_thinned_curve_keeps_its_end():
    curve = [(i, float(i)) for i in range(100)]
    assert learning_speed.thinned(curve, 3) == [(31, 31.0), (65, 65.0), (99, 99.0)]
    assert learning_speed.thinned(curve[:3], 3) == curve[:3]


def test_the_curve_of_a_run_that_was_stopped_early_goes_on_as_it_ended():
    assert learning_speed.carried_on([(1, 0.1), (2, 0.9)], 4) == [0.1, 0.9, 0.9, 0.9]
    assert learning_speed.carried_on([(1, 0.1), (2, 0.9)], 2) == [0.1, 0.9]


@pytest.mark.parametrize("path", COMPARISONS, ids=lambda path: path.stem)
def test_what_is_shown_was_measured_with_these_arms(path):
    comparison = learning_speed.read(path)
    found = json.loads((ROOT / f"benchmarks/results/comparisons/{path.stem}.json").read_text())
    for run in found["runs"]:
        config = learning_speed.configuration(comparison, run["arm"])
        assert run["digest"] == learning_speed.digest_of(config), "measured with other values"
        first = [s for s, value in run["curve"] if value >= comparison["threshold"] - 5e-5]
        assert run["reached"] == (first[0] if first else None)
    again = learning_speed.statistics(found["runs"], list(comparison["arms"]))
    assert list(again) == list(comparison["arms"])
    for arm, row in again.items():
        assert row["frames"] == pytest.approx(found["arms"][arm]["frames"])
    assert (ROOT / f"docs/pictures/{path.stem}.png").is_file()
    assert learning_speed.table(found) in (ROOT / "docs/llm.md").read_text()
