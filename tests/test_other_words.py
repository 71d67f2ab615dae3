"""What the documents say of other words is what was measured."""

import json
from pathlib import Path

import learning
import other_words
import yaml

ROOT = Path(__file__).parents[1]
RESULTS = json.loads(other_words.FILE.read_text())


def test_the_table_is_that_of_the_results():
    assert other_words.table(RESULTS) in (ROOT / "docs" / "llm.md").read_text()


def test_results_are_of_the_configurations_as_they_are():
    for result in RESULTS.values():
        assert result["digest"] == learning.digest(ROOT / result["config"])
        for runs in result["success"].values():
            assert len(runs) == len(result["seeds"])


def test_wordings_become_arguments():
    scored = yaml.safe_load((ROOT / "configs/ppo/textmaze-scoring-full.yaml").read_text())
    words = yaml.safe_load((ROOT / "configs/ppo/textmaze-words.yaml").read_text())
    assert set(other_words.wordings(words)) == set(other_words.WORDINGS)
    changes = other_words.wordings(scored)
    assert set(changes) == {*other_words.WORDINGS, *other_words.ACTIONS}
    assert changes["as in training"] == []
    assert changes["exit: goal"] == ['--data.wrappers=[{"Reword": {"words": {"exit": "goal"}}}]']


def test_a_wording_that_was_not_asked_is_a_dash():
    results = {"a": {"success": {"x": [0.5, 1.0]}}, "b": {"success": {"y": [0.25]}}}
    assert other_words.table(results).splitlines()[2:] == ["| x | 0.750 | – |", "| y | – | 0.250 |"]
