"""experiments/plot.py, called with the words of a command line."""

import json
import re

import numpy as np
import pytest
from refusals import refusal
from stored_runs import write_run

from trpo_jax.analysis.comparisons import Task
from trpo_jax.analysis.groups import Group
from trpo_jax.cli import plot
from trpo_jax.cli.plot_report import describe_efficiency, fractions, seed_list
from trpo_jax.envs import SUITES, make, suite_of

FIGURES = ("learning_curves", "aggregate", "performance_profile", "probability_of_improvement")
QUICK = ("--format", "svg")


def rising(*tops, num_updates=10):
    """Returns learning curves that rise evenly to a final return for each seed."""
    return np.array(tops)[:, None] * np.arange(1, num_updates + 1) / num_updates


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of two labels on two tasks. Runs of `small` are twice as long, with larger batches."""
    folder = tmp_path_factory.mktemp("runs")
    tops = {"base": (200, 300, 400), "small": (400, 500, 600)}
    for name, steps in (("base", 100), ("small", 200)):
        for env in ("CartPole-v1", "gym/Unknown-v0"):
            returns = rising(*tops[name])
            where = folder / name / env
            write_run(where, env, returns=returns, steps_per_update=steps, max_kl=steps / 1e4)
    return folder


def labelled(runs):
    return [f"base={runs}/base", f"small={runs}/small"]


shared = pytest.mark.xdist_group("plot")  # one worker, so that the figures are drawn once


@pytest.fixture(scope="module")
def plotted(runs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plots") / "new"
    assert plot.main([*labelled(runs), "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def report(plotted):
    return json.loads((plotted / "statistics.json").read_text())


@shared
def test_plot_writes_all_its_files(plotted):
    figures = {f"{name}.{suffix}" for name in FIGURES for suffix in ("pdf", "png")}
    names = {path.name for path in plotted.iterdir()}
    assert names == figures | {"statistics.md", "statistics.json"}
    for path in plotted.glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")
        assert 3_000 < path.stat().st_size < 300_000
    for path in plotted.glob("*.pdf"):
        content = path.read_bytes()
        assert content.startswith(b"%PDF")
        assert b"/FontFile2" in content  # the file contains a TrueType font
        assert b"/Type3" not in content


@shared
def test_scores_are_taken_at_the_number_of_steps_that_all_labels_have(report):
    task = report["tasks"]["CartPole-v1"]
    assert task["env_steps"] == 1000
    base, small = task["labels"]["base"], task["labels"]["small"]
    np.testing.assert_allclose(base["scores"], [200, 300, 400])
    np.testing.assert_allclose(small["scores"], [200, 250, 300])  # half of the run
    assert base["seeds"] == [0, 1, 2]
    assert base["iqm"] == 300
    assert base["iqm_ci95"][0] < 300 < base["iqm_ci95"][1]
    np.testing.assert_allclose(base["normalized_scores"][1], (300 - 22) / (500 - 22))


@shared
def test_the_steps_to_a_return_are_reported(report):
    unknown = report["tasks"]["gym/Unknown-v0"]
    assert (unknown["low"], unknown["high"]) == (20, 400)
    assert unknown["threshold"] == 20 + 0.9 * 380
    assert unknown["labels"]["base"]["steps_to_threshold"] == [None, None, 1000]
    assert unknown["labels"]["base"]["median_steps_to_threshold"] is None
    iqms = unknown["labels"]["base"]["running_return_iqm"]
    np.testing.assert_allclose([iqms[f"{x} %"] for x in (25, 50, 100)], [60, 150, 300])
    assert report["tasks"]["CartPole-v1"]["threshold"] == 475


def test_the_interquartile_mean_at_a_number_of_steps_needs_every_seed():
    returns = np.array([[np.nan, 1.0], *[[1.0, 2.0]] * 4])
    group = Group((), np.arange(5), np.array([50, 100]), returns)
    task = Task({"a": group}, 100, {}, 0.0, 1.0, 2.0, ())
    told = describe_efficiency(group, task)["running_return_iqm"]
    assert told == {"25 %": None, "50 %": None, "100 %": 2}


@shared
def test_the_report_has_results_over_all_tasks(report):
    assert report["baseline"] == "base"
    overall = report["overall"]
    assert overall["tasks"] == ["CartPole-v1", "gym/Unknown-v0"]
    assert list(overall["probability_of_improvement"]) == ["small"]
    better = overall["probability_of_improvement"]["small"]
    np.testing.assert_allclose(
        better["value"], (0.5 + 1 + 1.5) / 9
    )  # the scores on both tasks are 200, 250, 300
    means = [np.mean([(300 - 22) / 478, 280 / 380]), np.mean([(250 - 22) / 478, 230 / 380])]
    found = [overall["aggregates"]["mean"][label]["value"] for label in ("base", "small")]
    np.testing.assert_allclose(found, means)


@shared
def test_statistics_md_has_all_tables(plotted, runs):
    text = (plotted / "statistics.md").read_text()
    assert f" plot base={runs}/base" in text
    assert re.search(
        r"\| base \| 3 \| 300.0 \| \S+ to \S+ \| 300.0 \| 100.0 \| 60.0 \| 150.0 \| 300.0 \|", text
    )
    assert "| - | 1 of 3 |" in text
    assert "| small | 0.333 (" in text
    assert f"| CartPole-v1 | base | 0 to 2 | 1,000 of 1,000, not finished | `{runs}/base" in text
    assert "CartPole-v1: numbers are from the first 1,000 steps, the length of base." in text


@shared
def test_the_same_runs_give_the_same_numbers(runs, plotted, tmp_path):
    assert plot.main([*labelled(runs), "--out", str(tmp_path), *QUICK]) == 0
    first, second = (
        json.loads((folder / "statistics.json").read_text()) for folder in (plotted, tmp_path)
    )
    assert first.pop("command") != second.pop("command")
    assert first == second
    assert sorted(path.stem for path in tmp_path.glob("*.svg")) == sorted(FIGURES)
    assert not list(tmp_path.glob("*.p??"))


def test_the_terminal_shows_scores_notes_and_files(runs, tmp_path, capsys):
    assert plot.main([*labelled(runs), "--out", str(tmp_path), "--smooth", "40", *QUICK]) == 0
    text = capsys.readouterr().out
    assert re.search(r"CartPole-v1 +│ base +│ +3 │ +285.0 │ +\S+ to \S+ │", text)
    assert "last 40 training episodes" in text
    assert "gym/Unknown-v0 is not in normalization.toml. So normalised scores of 0 and 1" in text
    assert "the return to reach is" in text
    assert "scores of 0 and 1 are: CartPole-v1 22.0 and 500.0; gym/Unknown" in text
    assert "  statistics.md" in text


def test_the_label_is_the_algorithm_and_one_seed_is_enough(tmp_path, capsys):
    write_run(tmp_path / "runs/x", algorithm="ppo", returns=rising(100))
    write_run(tmp_path / "runs/y", "Acrobot-v1", algorithm="ppo", returns=rising(-100, -90))
    write_run(tmp_path / "runs/z", "Acrobot-v1", algorithm="npg", returns=rising(-100, -90))
    assert plot.main([f"{tmp_path}/runs", "--out", str(tmp_path / "new"), *QUICK]) == 0
    text = capsys.readouterr().out
    assert re.search(r"CartPole-v1 +│ ppo +│ +1 │ +100.0 │ +one seed │", text)
    assert re.search(r"Acrobot-v1 +│ ppo +│ +2 │ +-95.0 │ +range -100.0 to -90.0 │", text)
    few = "ppo on CartPole-v1, ppo on Acrobot-v1, npg on Acrobot-v1"
    assert f"seeds, so they have a range instead of an interval: {few}." in text
    assert "over all tasks leave out CartPole-v1: not every label has runs there." in text
    report = json.loads((tmp_path / "new/statistics.json").read_text())
    assert report["overall"]["tasks"] == ["Acrobot-v1"]
    assert report["overall"]["aggregates"]["mean"]["npg"]["ci95"] is None
    assert report["tasks"]["Acrobot-v1"]["labels"]["npg"]["iqm_ci95"] is None
    assert (
        "| npg | 2 | -95.0 | range -100.0 to -90.0 |"
        in (tmp_path / "new/statistics.md").read_text()
    )


def test_without_a_common_task_only_learning_curves_are_drawn(tmp_path, capsys):
    write_run(tmp_path / "runs/x", algorithm="ppo", returns=rising(100))
    write_run(tmp_path / "runs/y", "Acrobot-v1", algorithm="npg", returns=rising(-100))
    out = tmp_path / "new"
    assert plot.main([f"{tmp_path}/runs", "--out", str(out), "--format", "png"]) == 0
    assert "there are no results over all tasks" in capsys.readouterr().out
    assert [path.name for path in out.glob("*.png")] == ["learning_curves.png"]


def test_a_single_label_has_no_comparison(runs, tmp_path):
    assert plot.main([f"{runs}/base", "--out", str(tmp_path), *QUICK]) == 0
    assert not (tmp_path / "probability_of_improvement.svg").exists()
    assert (tmp_path / "aggregate.svg").exists()


def test_a_note_says_that_runs_are_cut_to_the_shortest(tmp_path, capsys):
    write_run(tmp_path / "runs/a", returns=rising(400))
    write_run(tmp_path / "runs/b", returns=rising(200, num_updates=5), seeds=[1], total_steps=1000)
    assert plot.main([f"{tmp_path}/runs", "--out", str(tmp_path / "new"), *QUICK]) == 0
    said = (
        f"runs of trpo are cut to the 500 steps of the shortest, {tmp_path}/runs/b. The longest "
        "has 1,"
    )
    assert said in capsys.readouterr().out
    report = json.loads((tmp_path / "new/statistics.json").read_text())
    assert report["tasks"]["CartPole-v1"]["labels"]["trpo"]["scores"] == [200, 200]


def test_scores_can_be_those_of_evaluations(tmp_path, capsys):
    write_run(tmp_path / "runs/a", returns=rising(400, 300), evaluations=[450, 350])
    write_run(
        tmp_path / "runs/b", algorithm="ppo", returns=rising(9, num_updates=2), evaluations=[8]
    )
    arguments = [f"{tmp_path}/runs", "--score", "evaluation", "--baseline", "ppo"]
    assert plot.main([*arguments, "--out", str(tmp_path / "new"), *QUICK]) == 0
    report = json.loads((tmp_path / "new/statistics.json").read_text())
    labels = report["tasks"]["CartPole-v1"]["labels"]
    assert (labels["trpo"]["scores"], labels["ppo"]["scores"]) == ([450, 350], [8])
    assert report["overall"]["probability_of_improvement"]["trpo"]["value"] == 1
    text = capsys.readouterr().out
    assert "its final policy over fresh episodes" in text
    assert "the length of ppo, except scores, which are from the end of each run" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{0}/absent"], r"There is no folder"),
        (["{0}/empty"], r"holds no run: a run's folder has a config.json"),
        (
            ["{0}/foreign"],
            r"foreign/config.json is damaged: it has no algorithm, total_st",
        ),
        (["{0}/runs"], r"both 'trpo' on CartPole-v1, and differ in max_kl \(0.01 and 0.02\)"),
        (["a={0}/runs", "b={0}/runs"], r"is given two labels, a and b"),
        (["={0}/runs"], r"is not of the form LABEL=FOLDER"),
        (["_a={0}/runs/a"], r"a label that begins with a letter"),
        (["{0}/runs/a", "--baseline", "trp"], r"Unknown label 'trp'. Did you mean trpo"),
        (["{0}/runs/a", "--smooth", "0"], r"--smooth 0 must be at least 1"),
        (["{0}/runs/a", "--smooth", "1000"], r"have not ended 1000 episodes"),
        (["{0}/runs/a", "--score", "evaluation"], r"a has no evaluation"),
        (["{0}/runs/a", "--format", "gif"], r"invalid choice: 'gif'"),
        (["{0}/runs/a", "--out", "{0}/runs"], r"is not empty, and nothing in it will be overwri"),
    ],
)
def test_bad_input_gives_an_error_of_one_paragraph_and_exit_code_2(
    arguments, message, tmp_path, capsys
):
    write_run(tmp_path / "runs/a", max_kl=0.01)
    write_run(tmp_path / "runs/b", seeds=[1], max_kl=0.02)
    write_run(tmp_path / "foreign")
    (tmp_path / "foreign/config.json").write_text('{"env": "CartPole-v1", "config": {}}')
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    words = [word.format(tmp_path) for word in arguments]
    error = refusal(plot.main, ["--out", str(tmp_path / "new"), *words], capsys)
    assert re.search(message, error), error
    assert sorted(tmp_path.rglob("*")) == before


def test_a_label_for_a_subfolder_wins_over_its_folder(tmp_path):
    write_run(tmp_path / "runs/a", max_kl=0.01)
    write_run(tmp_path / "runs/b", seeds=[1], max_kl=0.02)
    found = plot.label_runs([str(tmp_path / "runs"), f"large={tmp_path}/runs/b"])
    assert [(label, run.folder.name) for label, run in found] == [("trpo", "a"), ("large", "b")]


def test_a_folder_may_have_an_equals_sign_in_its_name(tmp_path):
    write_run(tmp_path / "kl=0.1/a")
    assert plot.split_label(f"{tmp_path}/kl=0.1") == ("", f"{tmp_path}/kl=0.1")
    assert plot.split_label(f"x={tmp_path}/kl=0.1") == ("x", f"{tmp_path}/kl=0.1")


def test_references_belong_to_environments():
    for name, reference in plot.tomllib.loads(plot.NORMALIZATION_FILE.read_text()).items():
        assert suite_of(name)[0] in SUITES
        assert reference["low"] < reference["high"]
        if "/" not in name:
            assert make(name).name == name


def test_fractions_have_three_digits():
    assert fractions((0.1, 0.25)) == "0.100 to 0.250"
    assert fractions(None) == "-"


@pytest.mark.parametrize(
    ("seeds", "text"), [([3], "3"), ([3, 4], "3, 4"), ([3, 4, 5], "3 to 5"), ([3, 5, 6], "3, 5, 6")]
)
def test_consecutive_seeds_are_written_as_a_range(seeds, text):
    assert seed_list(seeds) == text


def test_a_run_without_an_update_is_left_out_with_a_warning(runs, tmp_path, capsys):
    for name in ("base", "other"):
        write_run(tmp_path / "runs" / name, algorithm=name, returns=rising(300))
    write_run(tmp_path / "runs" / "young")
    (tmp_path / "runs" / "young" / "metrics.csv").write_text("seed,update\n")
    out = tmp_path / "new"
    assert plot.main([f"{tmp_path}/runs", "--out", str(out), "--format", "svg"]) == 0
    error = capsys.readouterr().err
    assert error.startswith("warning: The run in ")
    assert "young has not finished an update yet. It is left out." in error
    alone = [f"{tmp_path}/runs/young", "--out", str(tmp_path / "none")]
    assert "has not finished an update yet" in refusal(plot.main, alone, capsys)


def test_costs_have_columns_with_their_limits(tmp_path, capsys):
    costs = {"cpo": rising(4, 5, 6), "trpo": rising(11, 12, 13)}
    for name, config in (("cpo", {"cost_limit": 6.0}), ("trpo", {})):
        options = {"returns": rising(1, 2, 3), "costs": costs[name], **config}
        write_run(tmp_path / name, "native/TollRoad", name, **options)
    folder = tmp_path / "plots"
    assert plot.main([str(tmp_path), "--out", str(folder), *QUICK]) == 0
    found = json.loads((folder / "statistics.json").read_text())["tasks"]["native/TollRoad"]
    cost = found["labels"]["cpo"]["costs"]["cost"]
    assert (cost["per_seed"], cost["limit"], cost["keeps_limit"]) == ([4, 5, 6], 6, True)
    assert "limit" not in found["labels"]["trpo"]["costs"]["cost"]
    text = capsys.readouterr().out
    assert "running cost" in text
    assert "5.00 (limit 6)" in text
    assert "| 12.0 |" in (folder / "statistics.md").read_text()
    assert "cost" in (folder / "learning_curves.svg").read_text()
