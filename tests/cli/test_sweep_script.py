"""experiments/sweep.py, called with the words of a command line."""

import csv
import json
import shlex

import numpy as np
import pytest
from refusals import refusal

from trpo_jax.cli import sweep, train
from trpo_jax.cli.run_flags import plan_of
from trpo_jax.running import sweep as running_sweep
from trpo_jax.running.sweep_ranking import rank

pytestmark = [
    pytest.mark.xdist_group("sweep"),  # one worker, so that the sweep is shared
]

SMALL = ["--num-envs", "2", "--num-steps", "32", "--hidden-sizes", "8", "--critic-epochs", "2"]
FLAGS = ["--env", "Pendulum-v1", "--num-seeds", "3", "--total-steps", "256", *SMALL]
FLAGS += ["--evaluation-episodes", "2", "--grid", "max_kl=0.003,0.03"]
FLAGS += ["--grid", "critic_minibatches=2,4", "--batch", "4"]


def read(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweeps") / "finished"
    assert sweep.main([*FLAGS, "--quiet", "--out", str(folder)]) == 0
    return folder


@pytest.mark.slow
def test_a_sweep_writes_all_its_files(finished):
    names = {"sweep.json", "results.csv", "settings.csv", "sweep.png", "sweep.pdf"}
    assert {path.name for path in finished.iterdir()} == names
    assert (finished / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_results_have_one_row_for_each_run(finished):
    rows = read(finished / "results.csv")
    fields = ["setting", "max_kl", "critic_minibatches", "seed", "evaluation_return"]
    assert list(rows[0])[:5] == fields
    assert [(row["setting"], row["seed"]) for row in rows] == [
        (s, r) for s in "0123" for r in "012"
    ]
    assert [row["max_kl"] for row in rows[::3]] == ["0.003", "0.003", "0.03", "0.03"]
    assert [row["critic_minibatches"] for row in rows[::3]] == ["2", "4", "2", "4"]
    scores = [float(row["evaluation_return"]) for row in rows]
    assert len(set(scores)) == 12
    assert all(-2000 < x < 0 for x in scores)
    assert all(float(row["kl"]) <= float(row["max_kl"]) for row in rows)
    assert {row["broken_update"] for row in rows} == {"0"}


def test_settings_are_ranked_by_their_scores(finished):
    rows, ranking = read(finished / "results.csv"), read(finished / "settings.csv")
    iqms = [float(row["iqm"]) for row in ranking]
    assert iqms == sorted(iqms, reverse=True)
    for row in ranking:
        own = [float(x["evaluation_return"]) for x in rows if x["setting"] == row["setting"]]
        np.testing.assert_allclose(float(row["mean"]), np.mean(own), rtol=1e-5)
        np.testing.assert_allclose(float(row["worst"]), min(own), rtol=1e-5)
        assert float(row["mean_low"]) <= float(row["mean"]) <= float(row["mean_high"])


@pytest.mark.slow
def test_a_run_of_a_sweep_gives_the_numbers_of_train(finished, tmp_path):
    out = tmp_path / "alone"
    argv = ["--env", "Pendulum-v1", "--total-steps", "256", *SMALL, "--evaluation-episodes", "2"]
    argv += ["--num-seeds", "3", "--max-kl", "0.03", "--critic-minibatches", "4"]
    assert train.main([*argv, "--quiet", "--out", str(out)]) == 0
    scores = json.loads((out / "summary.json").read_text())["evaluation"]["per_seed"]
    ours = [float(x["evaluation_return"]) for x in read(finished / "results.csv")[9:]]
    np.testing.assert_allclose(ours, scores, rtol=0.02)


@pytest.mark.slow
def test_an_interrupted_sweep_can_be_continued(finished, tmp_path, monkeypatch, capsys):
    out = tmp_path / "interrupted"
    blocks = []

    def run_block(program, seeds, values, num_updates):
        blocks.append(len(seeds))
        if len(blocks) == 3:
            raise KeyboardInterrupt
        return original(program, seeds, values, num_updates)

    original = running_sweep.run_block
    monkeypatch.setattr(running_sweep, "run_block", run_block)
    assert sweep.main([*FLAGS, "--out", str(out)]) == 130
    assert "continues the sweep" in capsys.readouterr().err
    assert blocks == [3, 3, 3]  # groups of six runs, in blocks of at most four
    with (out / "results.csv").open("a") as file:
        file.write("2,0.03,2,1,-9")  # as if killed while writing
    assert sweep.main([*FLAGS, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "6 of these runs are finished already" in printed
    assert "looks better than it is" in printed
    assert (out / "results.csv").read_bytes() == (finished / "results.csv").read_bytes()


def test_another_sweep_in_the_same_folder_is_refused(finished, capsys):
    before = (finished / "results.csv").read_bytes()
    words = [*FLAGS, "--num-seeds", "4", "--gamma", "0.5", "--out", str(finished)]
    error = refusal(sweep.main, words, capsys)
    assert "gamma = 0.955, not 0.5" in error
    assert "seeds = [0, 1, 2], not [0, 1, 2, 3]" in error
    assert (finished / "results.csv").read_bytes() == before


@pytest.mark.slow
def test_runs_that_break_are_last_and_do_not_stop_the_others(tmp_path, capsys):
    out = tmp_path / "broken"
    argv = [*SMALL, "--num-seeds", "2", "--total-steps", "512", "--grid", "critic_lr=1e38,1e-3"]
    assert sweep.main([*argv, "--evaluation-episodes", "2", "--out", str(out)]) == 0
    first, last = read(out / "settings.csv")
    assert (first["critic_lr"], last["critic_lr"]) == ("0.001", "1e+38")
    assert (first["broken_seeds"], last["broken_seeds"]) == ("0", "2")
    assert last["iqm"] == ""
    broken, healthy = read(out / "results.csv")[0], read(out / "results.csv")[3]
    assert broken["evaluation_return"] == ""
    assert int(broken["broken_update"]) >= 1
    assert float(healthy["evaluation_return"]) > 8
    printed = capsys.readouterr().out
    assert "2 of 2 missing" in printed
    assert "range " in printed  # the other setting has two seeds
    assert first["iqm_low"] == first["mean_high"] == ""


def test_the_command_for_the_best_trains_it_on_other_seeds(finished, capsys, called_by_module):
    assert sweep.main([*FLAGS, "--out", str(finished)]) == 0
    lines = capsys.readouterr().out.splitlines()
    (words,) = (shlex.split(line)[4:] for line in lines if "-m trpo_jax train" in line)
    plan, best = plan_of(words), read(finished / "settings.csv")[0]
    assert plan.seeds == (3, 4, 5)
    assert plan.config.max_kl == float(best["max_kl"])
    assert plan.config.critic_minibatches == int(best["critic_minibatches"])
    assert (plan.env.name, plan.description["total_steps"]) == ("Pendulum-v1", 256)
    assert (plan.config.num_steps, plan.config.hidden_sizes) == (32, (8,))


def test_the_command_in_sweep_json_gives_the_same_sweep(finished, capsys):
    command = json.loads((finished / "sweep.json").read_text())["command"]
    assert command[:2] == ["trpo-jax", "sweep"]
    assert sweep.main(command[2:]) == 0
    assert "12 of these runs are finished already" in capsys.readouterr().out


def test_settings_are_ordered_by_interquartile_mean_then_by_mean():
    scores = {"a": [1, 1, 1, 9], "b": [1, 1, 1, 10], "c": [2, 2, 2, 2], "d": [50, np.nan, 50, 50]}
    results = {(i, s): {"x": y} for i, row in enumerate(scores.values()) for s, y in enumerate(row)}
    settings = [{"name": name} for name in [*scores, "missing"]]
    ranked = rank(settings, range(4), results, "x")
    assert [x.setting["name"] for x in ranked] == ["c", "b", "a", "d"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "Nothing is swept"),
        (["--grid", "max_kk=1"], "Did you mean max_kl"),
        (["--grid", "max_kl=0.01,0"], "max_kl = 0.0 cannot work"),
        (["--grid", "critic_minibatches=7"], "does not divide the batch"),
        (["--random", "4", "--range", "num_envs=1:4"], "List its values in grid"),
        (["--grid", "num_steps=32,256"], "is less than two batches of 512 steps"),
        (["--grid", "max_kl=0.1", "--env-arg", "gravty=1"], "Did you mean gravity"),
        (["--grid", "max_kl=0.1", "--batch", "0"], "batch = 0 must be at least 1"),
        (["--grid", "max_kl=0.1", "--seed", "-1"], "seed = -1"),
    ],
)
def test_bad_input_gives_an_error_of_one_paragraph(argv, message, tmp_path, capsys):
    out = tmp_path / "new"
    words = [*SMALL, "--total-steps", "512", *argv, "--out", str(out)]
    assert message in refusal(sweep.main, words, capsys)
    assert not out.exists()
