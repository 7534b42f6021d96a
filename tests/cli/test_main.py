"""The command trpo-jax, and the package as it is installed.

The wheel is built, installed and used by

    uv run pytest -n0 -m heavy tests/cli/test_main.py
"""

import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

import trpo_jax
from trpo_jax.cli import main, train
from trpo_jax.cli.command_line import command_name, flags_in

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "trpo_jax"


def exit_code(argv):
    with pytest.raises(SystemExit) as stop:
        main.main(argv)
    return stop.value.code


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_help_lists_every_command(argv, capsys):
    assert exit_code(argv) == 0
    text = capsys.readouterr().out
    others = {"reproduce", "limits", "peers", "returns_table", "chapter_figures"}
    scripts = {path.stem for path in (ROOT / "experiments").glob("*.py")} - others
    assert set(main.COMMANDS) == scripts
    for name in scripts:
        assert f"\n  {name} " in text
    assert max(map(len, text.splitlines())) <= 100


def test_the_version_is_printed(capsys):
    assert exit_code(["--version"]) == 0
    assert capsys.readouterr().out == f"trpo-jax {trpo_jax.__version__}\n"


def test_the_error_for_an_unknown_command_names_the_nearest_command(capsys):
    assert exit_code(["trian", "--seed", "1"]) == 2
    assert "Unknown command 'trian'. Did you mean train" in capsys.readouterr().err


def test_a_command_gets_its_arguments_and_returns_its_exit_code(monkeypatch):
    given = []
    monkeypatch.setattr(train, "main", lambda words: given.append(words) or 3)
    assert exit_code(["train", "--seed", "1"]) == 3
    monkeypatch.setattr(sys, "argv", ["trpo-jax", "train"])
    assert exit_code(None) == 3
    assert given == [["--seed", "1"], []]


@pytest.mark.parametrize("command", main.COMMANDS)
def test_the_help_of_each_command_names_it_as_the_user_did(command, monkeypatch, capsys):
    assert exit_code([command, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"usage: trpo-jax {command} ")
    monkeypatch.setattr(sys, "argv", [f"experiments/{command}.py"])
    assert exit_code([command, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"usage: experiments/{command}.py ")


def test_a_script_names_the_other_scripts_and_a_command_the_other_commands(monkeypatch):
    for started in ("/home/me/trpo_jax/experiments/compare.py", "experiments/reproduce.py"):
        monkeypatch.setattr(sys, "argv", [started])
        assert command_name("train") == "experiments/train.py"
    for started in ("/usr/bin/trpo-jax", "/lib/trpo_jax/__main__.py", ""):
        monkeypatch.setattr(sys, "argv", [started])
        assert command_name("train") == "trpo-jax train"
    assert flags_in(["trpo-jax", "train", "--seed", "1"]) == ["--seed", "1"]
    assert flags_in(["experiments/train.py", "--seed", "1"]) == ["--seed", "1"]
    assert flags_in(["trpo-jax", "train"]) == []


def test_the_command_is_an_entry_point_and_its_data_is_in_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["scripts"] == {"trpo-jax": "trpo_jax.cli.main:main"}
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == ["trpo_jax"]
    files = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.toml")}
    names = {"running/defaults.toml", "running/search_spaces.toml"}
    assert files == names | {"analysis/normalization.toml", "analysis/thresholds.toml"}


@pytest.mark.heavy
def test_the_wheel_works_alone(tmp_path):
    uv, python = shutil.which("uv"), tmp_path / "environment" / "bin" / "python"
    run = lambda *words, cwd=tmp_path: subprocess.run(
        words, cwd=cwd, check=True, capture_output=True, text=True
    )
    run(uv, "build", "--wheel", "--out-dir", tmp_path, cwd=ROOT)
    (wheel,) = tmp_path.glob("*.whl")
    run(uv, "venv", "--python", sys.executable, tmp_path / "environment")
    run(uv, "pip", "install", "--python", python, wheel)
    folder = tmp_path / "empty"
    folder.mkdir()
    command = python.with_name("trpo-jax")
    (folder / "tasks.py").write_text(
        "import trpo_jax\nmake_env = lambda: trpo_jax.make_env('CartPole-v1')\n"
    )
    names = ["--env", "tasks:make_env", "--num-envs", "8", "--num-steps", "64"]
    run(command, "train", *names, "--total-steps", "1024", "--out", "own", cwd=folder)
    run(command, "train", "--total-steps", "8192", "--num-seeds", "1", "--out", "run", cwd=folder)
    names = {"config.json", "metrics.csv", "summary.json", "learning_curve.png", "policy.msgpack"}
    assert {path.name for path in (folder / "run").iterdir()} == names | {"checkpoints"}
    run(command, "evaluate", "run", "--episodes", "3", cwd=folder)
    run(command, "render", "run", "--steps", "5", cwd=folder)
    run(command, "plot", "run", cwd=folder)
    run(command, "diagnose", "run", cwd=folder)
    help_text = run(python, "-m", "trpo_jax", "--help", cwd=folder).stdout
    assert help_text == main.HELP


def ended(load):
    with pytest.raises(SystemExit) as stop:
        main.end_in_order(load)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    return stop.value.code


def interrupted(number):
    """Does the same as a script that a signal stops as Ctrl-C, and that prints a message."""
    try:
        os.kill(os.getpid(), number)
        time.sleep(5)
    except KeyboardInterrupt:
        os.kill(os.getpid(), signal.SIGTERM)  # while it writes its files
        time.sleep(0.1)
        return 130


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_ends_a_script_in_an_orderly_way_at_any_time(number, code, monkeypatch, capsys):
    monkeypatch.setattr(os, "_exit", sys.exit)
    ours = lambda: interrupted(number)
    if number != signal.SIGINT:  # a second Ctrl-C is raised at once
        assert ended(lambda: ours) == code
    assert ended(lambda: os.kill(os.getpid(), number) or time.sleep(5)) == code  # during an import
    assert ended(lambda: lambda: os.kill(os.getpid(), number) or time.sleep(5)) == code
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_during_garbage_collection_is_not_lost(number, code, capsys):
    class Garbage:
        def __del__(self):
            os.kill(os.getpid(), number)
            time.sleep(0.01)

    def script():
        Garbage()
        time.sleep(5)

    assert ended(lambda: script) == code
    assert capsys.readouterr().err == "Interrupted.\n"


def test_ignored_signals_stay_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        assert ended(lambda: lambda: os.kill(os.getpid(), signal.SIGHUP) or 7) == 7
    finally:
        signal.signal(signal.SIGHUP, before)
