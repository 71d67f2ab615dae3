"""The comparison of judges on TextMaze: its controls differ from its arms as they should."""

import learning_speed
import textmaze_judges
import yaml

NAME = "textmaze-judges"
COMPARISON = yaml.safe_load(
    (learning_speed.ROOT / "benchmarks" / "comparisons" / f"{NAME}.yaml").read_text()
)


def judge(arm):
    (reward,) = learning_speed.configuration(COMPARISON, arm)["data"]["init_args"]["rewards"]
    return reward["init_args"]


def test_the_shuffled_goal_has_the_goals_letters_and_all_else_is_the_same():
    arm, control = judge("similarity"), judge("shuffled goal")
    goals, shuffled = arm.pop("goal"), control.pop("goal")
    assert list(map(sorted, goals)) == list(map(sorted, shuffled))
    assert all(goal != other for goal, other in zip(goals, shuffled, strict=True))
    assert arm == control


def test_shuffled_labels_are_the_same_labels_of_the_same_comparisons():
    rows = [{"a": f"{k}", "b": "x", "label": float(k % 3 == 0)} for k in range(300)]
    made = textmaze_judges.shuffled(rows)
    assert [row["a"] for row in made] == [row["a"] for row in rows]
    labels, before = ([row["label"] for row in part] for part in (made, rows))
    assert sorted(labels) == sorted(before)
    assert sum(map(float.__eq__, labels, before)) < 200
    arm, control = judge("learned"), judge("shuffled labels")
    assert arm.pop("ckpt_path") != control.pop("ckpt_path")
    assert arm == control


def test_the_judge_that_is_fooled_is_the_same_one_paid_as_it_is():
    arm, hacked = judge("similarity"), judge("hacked")
    for name, value in (("shaping", "none"), ("offset", 0.0), ("weight", 0.2)):
        assert hacked.pop(name) == value != arm.pop(name)
    assert arm == hacked
