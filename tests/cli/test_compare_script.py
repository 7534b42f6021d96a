"""experiments/compare.py, called with the words of a command line."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from refusals import refusal

from trpo_jax.cli import compare
from trpo_jax.running.loop import NonFiniteError

pytestmark = [
    pytest.mark.xdist_group("compare"),  # one worker, so that the comparison is shared
    pytest.mark.usefixtures("shared_programs"),
]

TINY = ["num_envs=2", "num_steps=64", "hidden_sizes=8", "critic_epochs=1", "critic_minibatches=4"]
TINY += ["evaluation_episodes=2"]
ARGUMENTS = [
    *("--algorithms", "vpg", "ou=vpg --exploration ou", "--envs", "CartPole-v1", "Pendulum-v1"),
    *("--num-seeds", "2", "--seed", "5", "--total-steps", "1024"),
    *("--set", *(f"*.{setting}" for setting in TINY), "--set", "ou.ou_rho=0.8"),
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("comparison")
    assert compare.main([*ARGUMENTS, "--out", str(folder)]) == 0
    return folder


def with_out(folder, *arguments):
    return [*ARGUMENTS, *arguments, "--out", str(folder)]


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*/*") if path.is_file()}


@pytest.mark.slow
def test_each_pair_has_the_usual_files_of_a_run(finished):
    names = {"config.json", "metrics.csv", "summary.json", "learning_curve.png", "policy.msgpack"}
    for pair in ("CartPole-v1/vpg", "Pendulum-v1/vpg", "Pendulum-v1/ou"):
        assert {path.name for path in (finished / pair).iterdir()} >= names
    assert not (finished / "CartPole-v1/ou").exists()
    config = json.loads((finished / "Pendulum-v1/ou/config.json").read_text())
    assert (config["seed"], config["num_seeds"], config["total_steps"]) == (5, 2, 1024)
    assert config["config"]["exploration"] == "ou"
    assert config["config"]["ou_rho"] == 0.8
    assert config["config"]["hidden_sizes"] == [8]


@pytest.mark.slow
def test_the_table_has_a_row_for_each_pair(finished):
    table = (finished / "comparison.md").read_text()
    assert "trpo-jax compare --algorithms vpg 'ou=vpg --exploration ou'" in table
    assert "jax 0." in table
    assert "Device: cpu" in table
    assert "all seeds together" in table
    assert re.search(r"\| vpg \| 1,024 \| 2 \| \*\*\S+\*\* \| range \S+ to \S+ \|", table)
    assert "Fewer than 3 seeds have no interval, but a range" in table
    assert "- (0/2)" in table
    assert "| ou | - | - |" in table
    assert "ou: exploration = 'ou' needs continuous actions" in table


@pytest.mark.slow
def test_the_report_has_the_numbers_of_each_pair(finished):
    report = json.loads((finished / "comparison.json").read_text())
    section = report["environments"]["CartPole-v1"]
    assert section["threshold"] == 475
    row = section["algorithms"]["vpg"]
    summary = json.loads((finished / "CartPole-v1/vpg/summary.json").read_text())
    assert row["per_seed"] == summary["evaluation"]["per_seed"]
    assert row["iqm"] == summary["evaluation"]["iqm"]
    assert row["iqm_ci95"] is None  # two seeds are too few
    assert row["env_steps_to_threshold"] == [None, None]


@pytest.mark.slow
def test_the_figure_is_a_png_file(finished):
    picture = (finished / "comparison.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert 10_000 < len(picture) < 300_000


@pytest.mark.slow
def test_a_continued_comparison_runs_only_unfinished_pairs(finished, capsys, monkeypatch):
    unfinished = finished / "Pendulum-v1/ou"
    (unfinished / "summary.json").rename(unfinished / "summary.txt")
    started = []

    def broken(out, **settings):
        started.append(out)
        raise NonFiniteError("Update 3 of seed 5 gave numbers that are not finite.")

    with monkeypatch.context() as patch:
        patch.setattr(compare, "train", broken)
        before = files(finished)
        assert compare.main(with_out(finished)) == 1
        assert started == [unfinished]
        printed = capsys.readouterr()
        assert printed.out.count("finished earlier") == 2
        assert "error: Update 3 of seed 5" in printed.err
        after = files(finished)
        assert all(after[path] == before[path] for path in before if path.parent != finished)
        assert "ou: The run did not finish" in (finished / "comparison.md").read_text()

    assert compare.main(with_out(finished)) == 0  # continues in its folder
    assert not list(finished.glob("*/*unfinished*"))
    again, before = (json.loads((unfinished / f"summary.{x}").read_text()) for x in ("json", "txt"))
    assert again["evaluation"] == before["evaluation"]
    (unfinished / "summary.txt").unlink()


def test_ctrl_c_in_a_run_stops_the_comparison(tmp_path, capsys, monkeypatch):
    stopped = SimpleNamespace(stopped_by="interrupt")
    monkeypatch.setattr(compare, "train", lambda **settings: stopped)
    assert compare.main(with_out(tmp_path)) == 130
    assert f"--out {tmp_path} continues the comparison" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--envs", "CartPole-v1", "CartPol-v1"], r"Did you mean CartPole-v1"),
        (["--algorithms", "trpo", "pp"], r"Unknown algorithm 'pp'. Did you mean ppo"),
        (["--algorithms", "x=pp"], r"Unknown algorithm 'pp'"),
        (["--algorithms", "trpo", "trpo"], r"label 'trpo' is given twice"),
        (["--algorithms", "trpo --seed 3"], r"--seed in 'trpo --seed 3' is not allowed"),
        (["--algorithms", "trpo --loss 'spo"], r"cannot be read: No closing quotation"),
        (["--set", "vg.gamma=1"], r"Unknown label 'vg'. Did you mean vpg"),
        (["--set", "max_kl=1"], r"--set 'max_kl=1' is not of the form"),
        (["--set", "vpg.colour=red"], r"unrecognized arguments: --colour red"),
        (["--set", "vpg.gamma=2"], r"vpg cannot run on any of the environments. gamma = 2.0"),
        (["--set", "vpg.gamma=0.5"], r"vpg has gamma = 0.99, not 0.5"),
        (["--num-seeds", "3"], r"num_seeds = 2, not 3"),
        (["--env-arg", "max_steps_in_episode=5"], r"env_args = None, not {'max_steps_in_episode'"),
        (["--env-arg", "gravty=5.0"], r"Unknown argument of CartPole-v1 'gravty'"),
        (["--wrapper", "math:sqrt"], r"math:sqrt failed for 'CartPole-v1'.*TypeError"),
        (["--total-steps", "10"], r"10 is less than one batch"),
    ],
)
def test_bad_input_gives_an_error_of_one_paragraph_and_exit_code_2(
    finished, arguments, message, capsys
):
    before = files(finished)
    error = refusal(compare.main, with_out(finished, *arguments), capsys)
    assert re.search(message, error), error
    assert files(finished) == before


@pytest.mark.parametrize(
    ("text", "variant"),
    [
        ("ppo", ("ppo", "ppo", ())),
        ("spo=ppo --loss spo", ("spo", "ppo", ("--loss", "spo"))),
        ("ppo --loss=spo", ("ppo", "ppo", ("--loss=spo",))),
        ("kl-0.5=trpo --max-kl 0.5", ("kl-0.5", "trpo", ("--max-kl", "0.5"))),
    ],
)
def test_a_variant_is_parsed_from_text(text, variant):
    assert compare.parse_variant(text) == variant


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("a.loss=spo", ["--loss", "spo"]),
        ("a.hidden_sizes=64 32", ["--hidden-sizes", "64", "32"]),
        ("*.damped_scaling=false", ["--no-damped-scaling"]),
        ("a.scale_rewards=true", ["--scale-rewards"]),
    ],
)
def test_a_setting_is_parsed_from_text(text, flags):
    assert compare.parse_setting(text, ["a"])[1] == flags


def test_only_rows_whose_interval_overlaps_the_best_are_marked():
    best = {"iqm": 9.0, "iqm_ci95": (8.0, 10.0)}
    assert compare.score_cell(best, best) == "**9.00**"
    assert compare.score_cell({"iqm": 7.0, "iqm_ci95": (6.0, 8.5)}, best) == "7.00 ≈"
    assert compare.score_cell({"iqm": 7.0, "iqm_ci95": (6.0, 7.5)}, best) == "7.00"
    assert compare.score_cell({"iqm": 7.0, "iqm_ci95": None}, best) == "7.00"


def test_the_steps_to_a_threshold_need_every_seed():
    assert compare.threshold_cell([1000.0, 3000.0, 2000.0], ",.0f") == "2,000"
    assert compare.threshold_cell([1000.0, None, 2000.0], ",.0f") == "- (2/3)"


def test_thresholds_belong_to_environments():
    for name, threshold in compare.tomllib.loads(compare.THRESHOLDS_FILE.read_text()).items():
        assert compare.envs.make(name).name == name
        assert np.isfinite(threshold)


def test_each_cost_has_a_column_in_the_table():
    row = {"total_steps": 9, "per_seed": [1.0, 2.0], "iqm": 1.5, "iqm_ci95": None, "seconds": 1.0}
    cost = {"mean": 7.5, "limit": 5.0, "keeps_limit": False}
    lines = list(compare.section_lines(None, {"cpo": row | {"costs": {"toll": cost}}, "ppo": row}))
    assert lines[0].endswith("| cost toll |")
    assert lines[2].endswith("| 7.50 (above limit 5) |")
    assert lines[3].endswith("| - |")


def test_a_row_above_its_limit_is_not_the_best():
    row = lambda iqm, cost: {
        **{"total_steps": 9, "per_seed": [iqm] * 2, "iqm": iqm, "seconds": 1.0},
        **{"iqm_ci95": (iqm - 5, iqm + 5)},
        "costs": {"toll": {"mean": cost, "limit": 5.0, "keeps_limit": cost <= 5}},
    }
    rows = {"a": row(9.0, 5.1), "b": row(7.0, 4.0), "c": row(6.0, 5.0)}
    scores = [line.split("|")[4].strip() for line in compare.section_lines(None, rows)]
    assert scores[2:] == ["9.00", "**7.00**", "6.00 ≈"]
