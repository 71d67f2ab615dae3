"""What the README and the configurations claim is what the result files say."""

import json
import re
import statistics
from pathlib import Path

import common
import completion_training
import hacked_rewards
import learning
import preparing
import prune_net
import pytest
import random_policy

ROOT = Path(__file__).parents[1]

# Reward models play no episodes, so nothing here judges them.
CONFIGS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in ROOT.glob("configs/*/*.yaml")
    if path.parent.name != "reward"
)
RESULTS = {
    r["config"]: r for r in map(json.loads, map(Path.read_text, learning.RESULTS.glob("*.json")))
}


def test_every_result_is_of_a_configuration():
    assert RESULTS
    assert set(RESULTS) <= set(CONFIGS)


@pytest.mark.parametrize("config", CONFIGS)
def test_a_configuration_quotes_its_own_result(config):
    result, path = RESULTS[config], ROOT / config
    assert result["digest"] == learning.digest(path), "measured with other values: run it again"
    assert result["overrides"] == []
    command, quoted = path.read_text().splitlines()[:2]
    assert command == f"# rl-lightning fit --config {config}"
    assert quoted == learning.summary(result)
    assert (result["metric"], result["threshold"]) == learning.judged(path)


@pytest.mark.parametrize("config", CONFIGS)
def test_statistics_are_those_of_the_runs(config):
    result = RESULTS[config]
    values = [run[result["metric"]] for run in result["runs"] if "error" not in run]
    expected = learning.aggregate(values, result["threshold"])
    assert result["aggregate"] == pytest.approx(expected, abs=1e-3)


def test_the_readme_shows_all_results():
    assert learning.table(learning.RESULTS) in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("config", CONFIGS)
def test_random_actions_were_judged_by_the_same_episodes(config):
    found = json.loads(learning.RANDOM.read_text())[config]
    assert found["digest"] == random_policy.digest(ROOT / config), "measured in others: repeat it"


def test_what_random_actions_score_can_be_measured_again():
    config = "configs/dqn/bitflip-her.yaml"  # goal dictionaries, and quick
    found = json.loads(learning.RANDOM.read_text())[config]
    del found["digest"]
    assert random_policy.play(ROOT / config) == found


def test_the_readme_shows_the_speeds_that_were_measured():
    readme, folder = (ROOT / "README.md").read_text(), learning.RESULTS / "speed"
    for name in (f"{k}policy{o}.json" for k in ("on", "off") for o in ("", "_cleanrl")):
        for row in json.loads((folder / name).read_text())["settings"].values():
            assert row == {"pairs": row["pairs"], **common.summary(row["pairs"])}
            ratio = f"{row['ratio']:.2f} ({row['ratio_min']:.2f} … {row['ratio_max']:.2f})"
            ours = f"{row['return']:.0f} ± {row['return_std']:.0f}"
            theirs = f"{row['their_return']:.0f} ± {row['their_return_std']:.0f}"
            pattern = rf"\| {re.escape(ratio)}[^|]* \| {re.escape(f'{ours} / {theirs}')} \|"
            assert re.search(pattern, readme)
    row = json.loads((folder / "offpolicy.json").read_text())["settings"]["SAC HalfCheetah"]
    page = (ROOT / "docs/agents/sac.md").read_text()
    assert f"{row['return']:.0f} ± {row['return_std']:.0f} for ours" in page
    assert f"{row['their_return']:.0f} ± {row['their_return_std']:.0f} for theirs" in page
    learned = json.loads((folder / "same_learning.json").read_text())["settings"]
    for row in (row for marks in learned.values() for row in marks.values()):
        for library in ("rl_lightning", "sb3"):
            seen = row[library]["returns"]
            error = statistics.stdev(seen) / len(seen) ** 0.5
            assert f"{statistics.mean(seen):.0f} ± {error:.0f}" in readme
    chunks = json.loads((folder / "llm_chunks.json").read_text())["8 … 128"]
    assert f"{chunks['ratio']:.1f} times" in readme
    replay = json.loads((folder / "replay.json").read_text())
    for row in replay["memory"]:
        assert f"| {row['observations']} | {row['ours']:,.0f} | {row['naive']:,.0f} |" in readme
    for row in replay["priorities"]:
        assert f"{row['us']:.0f} µs at {row['items']:,}" in readme
    assert f"grew by {replay['disk']['grown_mb']:,.0f} MB" in readme
    scored = json.loads((folder / "action_scoring.json").read_text())
    for way in ("forward", "forward and backward"):
        rows = [scored["actions"][k][way]["pairs / ours"][1] for k in ("4", "16", "64")]
        assert " / ".join(f"{ratio:.1f}" for ratio in rows) + " times less" in readme
    assert f"does {scored['policy']['ratio']:.1f} times the frames" in readme
    measured = json.loads((folder / "llm_encoder.json").read_text())
    assert f"{measured['ours']['fps'] / measured['usual']['fps']:.1f}" in readme


def pair(ours, theirs, **more):
    libraries = zip(("rl_lightning", "sb3"), (ours, theirs), strict=True)
    return {name: {"fps": fps, "return": total} for name, (fps, total) in libraries} | more


def test_pairs_that_ran_together_count_for_returns_only():
    alone, together = pair((3.0, 1.0), (2.0, 5.0)), pair((9.0, 3.0), (1.0, 5.0), together=True)
    row = common.summary([alone, together])
    assert (row["ratio"], row["ratio_min"], row["ratio_max"], row["ours"]) == (1.5, 1.5, 1.5, 3.0)
    assert (row["return"], row["their_return"]) == (2.0, 5.0)
    assert row["return_std"] == learning.aggregate([1.0, 3.0], None)["std"]  # as in other tables
    assert "ratio" not in common.summary([together])


@pytest.mark.parametrize("together", [False, True])
def test_pairs_are_added_to_earlier_ones(together, monkeypatch):
    calls = []

    def run(script, library, name, seed):
        calls.append((library, name, seed))
        return {"fps": 1.0, "return": float(seed)}

    monkeypatch.setattr(common, "run_apart", run)
    earlier = {"a": [pair((1.0, 1.0), (1.0, 1.0))]}
    rows = common.compare("x.py", {"a": ("a",)}, 2, earlier=earlier, together=together)
    assert sorted(calls) == [(k, "a", n) for k in ("rl_lightning", "sb3") for n in (2, 3)]
    assert [p["sb3"]["return"] for p in rows["a"]["pairs"]] == [1.0, 2.0, 3.0]
    assert [p.get("together", False) for p in rows["a"]["pairs"]] == [False, together, together]
    if not together:
        assert [library for library, *_ in calls] == ["sb3", "rl_lightning", "rl_lightning", "sb3"]


def test_a_run_that_fails_is_the_last_one(monkeypatch):
    calls = []

    def fail(*arguments):
        calls.append(arguments)
        raise SystemExit("no")

    monkeypatch.setattr(common, "run_apart", fail)
    with pytest.raises(SystemExit, match="no"):
        common.compare("x.py", {"a": ()}, 5)
    assert len(calls) == 1


def test_seeds_are_added_to_those_of_the_same_configuration(tmp_path, monkeypatch):
    path = ROOT / "configs/dqn/cartpole.yaml"

    def run(path, seed, *rest):
        return {"seed": seed, "return": 100.0 * seed, "frames": 1000}

    def measure(*seeds, overrides=()):
        *_, result = learning.run_config(path, list(seeds), 1, None, list(overrides), tmp_path)
        (tmp_path / f"{result['name']}.json").write_text(learning.render(result))
        return {run["seed"]: run["return"] for run in result["runs"]}, result["aggregate"]["mean"]

    monkeypatch.setattr(learning, "run_seed", run)
    assert measure(3, 1) == ({1: 100, 3: 300}, 200)
    assert measure(2) == ({1: 100, 2: 200, 3: 300}, 200)
    monkeypatch.setattr(learning, "run_seed", lambda *a: {**run(*a), "return": 0.0})
    assert measure(3) == ({1: 100, 2: 200, 3: 0}, 100)
    assert measure(4, overrides=["data.num_envs=2"]) == ({4: 0}, 0)  # another configuration


@pytest.mark.parametrize("name", preparing.PREPARE)
def test_a_configuration_says_how_its_data_are_made(name):
    steps = preparing.PREPARE[name]
    path = ROOT / "configs" / "{}/{}.yaml".format(*name.split("-", 1))
    file, _ = steps[-1]
    if file.endswith("/config.json"):
        assert f"model: {file.removesuffix('/config.json')}" in path.read_text()
    else:
        assert re.search(rf"(dataset|file|teacher): {file}", path.read_text())
    said = comments(path)
    while other := re.search(r"The data are those of (\S+\.yaml)\.", said):
        said = said.replace(other[0], comments(ROOT / other[1]))
    for command in (command for _, commands in steps for command in commands):
        program = "python" if command.split()[0].endswith(".py") else "rl-lightning"
        assert f"{program} {command}" in said


def comments(path):
    lines = [line for line in path.read_text().splitlines() if line.startswith("#")]
    return " ".join(line.lstrip("# ") for line in lines)


TUNING = (ROOT / "docs" / "llm-finetuning.md").read_text()


def test_the_table_of_hacked_rewards_is_what_was_measured():
    found = json.loads(hacked_rewards.RESULTS.read_text())
    assert hacked_rewards.table(found["cases"]) in TUNING


def test_gains_of_sharing_a_prompt_are_those_that_were_measured():
    found = json.loads((learning.RESULTS / "speed" / "completions.json").read_text())["shapes"]
    for shape in found.values():
        for ratios in (
            shape["writing"]["apart / shared"],
            shape["update"]["rows / auto"],
            shape["update"]["all logits / auto"],
        ):
            assert f"{ratios[1]:.2f}" in TUNING


def test_speeds_of_tuning_are_those_that_were_measured():
    found = json.loads((learning.RESULTS / "speed" / "completion_training.json").read_text())
    assert completion_training.table(found["settings"]) in TUNING
    readme = (ROOT / "README.md").read_text()
    for name in ("prompt 10, 4 × 8 × 32 new", "prompt 200, 4 × 8 × 32 new"):
        assert f"{found['settings'][name]['ratio']:.2f} times" in readme


def test_the_tables_of_pruning_are_what_was_measured():
    runs = json.loads(prune_net.FILE.read_text())["runs"]
    page = (ROOT / "docs" / "optimising-models.md").read_text()
    for run in runs:
        expected = prune_net.digest_of_run(run["arm"], run["budget"], run["seed"])
        assert run["digest"] == expected, "measured with other values: run it again"
    assert prune_net.table(runs) in page
    assert prune_net.unseen_table(runs) in page


def test_differences_to_uniform_pruning_are_of_the_same_networks():
    """Of seeds 1 and 2, of which the second has no run of the agent yet."""

    def run(arm, seed, **accuracies):
        plans = {name: {"test_accuracy": value} for name, value in accuracies.items()}
        return {"arm": arm, "budget": 0.5, "seed": seed, "plans": plans}

    runs = [run("rules", 1, **{"uniform share": 0.5}), run("rules", 2, **{"uniform share": 0.9})]
    runs += [run("SAC", 1, policy=0.7)]
    lines = prune_net.table(runs).splitlines()
    assert lines[2] == "| uniform share | 0.700 ± 0.200 | +0.000 ± 0.000 |"
    assert lines[3] == "| SAC: policy | 0.700 ± 0.000 | +0.200 ± 0.000 |"


def test_the_readme_shows_how_far_tables_are_from_value_iteration():
    runs = json.loads((learning.RESULTS / "exact" / "tabular.json").read_text())["runs"]
    readme = (ROOT / "README.md").read_text()
    for name in {run["config"] for run in runs} - {"textmaze"}:
        worst = max(run["gap"] for run in runs if run["config"] == name)
        assert f"{name} {100 * worst:.2f} %" in readme
    assert all(run["gap"] == 0 for run in runs if run["config"] == "textmaze")
