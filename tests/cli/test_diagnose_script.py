"""experiments/diagnose.py, called with the words of a command line."""

import re

import numpy as np
import pytest
from healthy_runs import healthy_run, write_run
from refusals import refusal

from trpo_jax.analysis.diagnosis import find_warnings
from trpo_jax.cli import diagnose, train
from trpo_jax.figures.diagnosis_panels import panels

PAGES = ("diagnosis.pdf", "diagnosis.png")


def pages(folder):
    return [(folder / name).read_bytes() for name in PAGES]


@pytest.mark.slow
def test_the_page_is_written_into_the_folder_of_the_run(tmp_path, capsys):
    folder = write_run(tmp_path / "run", healthy_run())
    assert diagnose.main([str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "TRPO on CartPole-v1, seeds 7 to 9: 60,000 environment steps each" in printed
    assert "No warnings." in printed
    assert all(str(folder / name) in printed for name in PAGES)
    pdf, png = pages(folder)
    assert pdf.startswith(b"%PDF")
    assert b"/FontFile2" in pdf  # a TrueType font
    assert b"/Type3" not in pdf
    assert len(pdf) < 200_000
    assert png.startswith(b"\x89PNG")
    assert 20_000 < len(png) < 300_000
    names = {"config.json", "metrics.csv", *PAGES}
    assert {path.name for path in folder.iterdir()} == names


def test_warnings_are_printed_and_the_exit_code_is_0(tmp_path, capsys):
    run = healthy_run()
    run.metrics["cg_residual"][2] = 0.7
    assert diagnose.main([str(write_run(tmp_path / "run", run))]) == 0
    printed = capsys.readouterr().out
    assert "CG residual high: seed 9, updates 41 to 60: median relative residual 0.7." in printed
    assert "No warnings" not in printed


@pytest.mark.slow
def test_earlier_pages_are_replaced_and_other_folders_are_created(tmp_path):
    run = healthy_run(num_updates=12)
    folder = write_run(tmp_path / "run", run)
    for name in PAGES:
        (folder / name).write_text("of an earlier call")
    assert diagnose.main([str(tmp_path), "--out", str(tmp_path / "new" / "place")]) == 0
    assert pages(folder) == [b"of an earlier call"] * 2
    assert diagnose.main([str(folder)]) == 0
    assert pages(folder)[1] == pages(tmp_path / "new" / "place")[1]


@pytest.mark.slow
def test_a_long_run_is_a_small_file(tmp_path):
    folder = write_run(tmp_path / "run", healthy_run(num_seeds=4, num_updates=5000))
    assert diagnose.main([str(folder)]) == 0
    assert all(len(page) < 200_000 for page in pages(folder))


@pytest.mark.parametrize("algorithm", ["trpo", "ppo"])
def test_a_run_without_some_metrics_has_a_page_without_their_panels(algorithm):
    run = healthy_run(algorithm)
    places = {"seed", "update", "env_steps"}
    for name in run.metrics.keys() - places:
        without = {other: x for other, x in run.metrics.items() if other != name}
        lacking = run._replace(metrics=without)
        assert all(name not in panel.metrics for panel in panels(lacking)), name
        find_warnings(lacking)
    assert panels(run._replace(metrics={name: run.metrics[name] for name in places})) == []
    for name in run.description["config"]:  # an older version had fewer fields
        config = {other: x for other, x in run.description["config"].items() if other != name}
        older = run._replace(description=run.description | {"config": config})
        assert panels(older)
        find_warnings(older)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent"], r"There is no folder absent"),
        (["empty"], r"empty holds no run: a run's folder has a config.json"),
        (["."], r"\. holds 2 runs, and a page shows one\. .*: a, b\."),
        (["a", "--out", "a/metrics.csv"], r"folder a/metrics.csv cannot be created: .*--out"),
        ([], r"arguments are required: folder"),
    ],
)
def test_bad_input_gives_an_error_of_one_paragraph_and_exit_code_2(
    tmp_path, arguments, message, capsys, monkeypatch
):
    for name in ("a", "b"):
        write_run(tmp_path / name, healthy_run(num_seeds=1, num_updates=2))
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    error = refusal(diagnose.main, arguments, capsys)
    assert re.search(message, error), error


@pytest.mark.slow
def test_a_run_of_train_can_be_diagnosed(tmp_path, capsys):
    tiny = ["--num-envs", "2", "--num-steps", "32", "--hidden-sizes", "8", "--critic-epochs", "1"]
    tiny += ["--num-seeds", "2", "--total-steps", "768", "--evaluation-episodes", "1", "--quiet"]
    folder = tmp_path / "run"
    assert train.main([*tiny, "--out", str(folder)]) == 0
    assert diagnose.main([str(folder)]) == 0
    headline = "TRPO on CartPole-v1, seeds 0 to 1: 768 environment steps each, in 12 updates"
    assert headline in capsys.readouterr().out
    assert np.all([len(page) > 10_000 for page in pages(folder)])
