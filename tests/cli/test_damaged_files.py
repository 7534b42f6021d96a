"""Damaged files of a run: every command gives a right answer, or an error of one paragraph."""

import shutil
from contextlib import ExitStack
from itertools import cycle

import numpy as np
import pytest
from refusals import refusal

from trpo_jax import envs
from trpo_jax.algorithms import trpo
from trpo_jax.analysis.diagnosis import find_warnings
from trpo_jax.analysis.groups import join_runs
from trpo_jax.cli import compare, diagnose, plot
from trpo_jax.cli import train as script
from trpo_jax.cli.run_flags import plan_of
from trpo_jax.errors import ConfigurationError
from trpo_jax.figures.diagnosis import headline
from trpo_jax.figures.diagnosis_panels import panels
from trpo_jax.records.files import locked, write_csv
from trpo_jax.records.policies import read_policies
from trpo_jax.records.runs import read_metrics, read_run
from trpo_jax.running import sweep, sweep_ranking
from trpo_jax.running.folder import open_folder
from trpo_jax.running.train import train

pytestmark = [
    pytest.mark.xdist_group("damage"),  # one worker, so that the run is shared
    pytest.mark.usefixtures("shared_programs"),
]

CONFIG = trpo.Config(
    num_envs=2, num_steps=16, hidden_sizes=(8,), critic_epochs=1, critic_minibatches=2
)
OPTIONS = {"seeds": 2, "total_steps": 192, "eval_every": 2, "checkpoint_every": 2}
OPTIONS |= {"evaluation_episodes": 2, "progress": False}
TIMES = 40  # how often each file is damaged


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("damage") / "run"
    train("CartPole-v1", CONFIG, **OPTIONS, out=out)
    return out


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def damages(content, seed):
    """Yields the content of a file with a bit flipped, bytes cut out, and bytes put in."""
    rng = np.random.default_rng(seed)
    for turn in range(TIMES):
        place, length = int(rng.integers(len(content))), int(rng.integers(1, 9))
        match turn % 4:
            case 0:
                flipped = content[place] ^ (1 << int(rng.integers(8)))
                yield content[:place] + bytes([flipped]) + content[place + 1 :]
            case 1:
                yield content[:place]
            case 2:
                yield content[:place] + content[place + length :]
            case 3:
                yield content[:place] + rng.bytes(length) + content[place:]


def resume(folder):
    plan = plan_of(["--resume", str(folder)])
    with ExitStack() as stack:
        open_folder(plan, stack)


def diagnosed(folder):
    found = read_run(folder, diagnose.DESCRIBED, ("env_steps",))
    return headline(found), find_warnings(found), panels(found)


def plotted(folder):
    for name, groups in join_runs(plot.label_runs([str(folder)]), 4).items():
        plot.compare_on(name, groups, "evaluation", 4)


def compared(folder):
    pair = compare.Pair("trpo", "CartPole-v1", folder, (), None)
    return compare.compare([pair], "command"), compare.read_curve(pair)


def judged(folder):
    env = envs.make("CartPole-v1")
    read_policies(folder, env)
    return read_policies(folder, env, checkpoint="latest")


COMMANDS = (judged, resume, diagnosed, plotted, compared)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["config.json", "metrics.csv", "evaluations.csv", "summary.json"])
def test_a_damaged_file_gives_an_error_of_one_paragraph_or_does_no_harm(name, run):
    """The commands take turns. Each of them meets every kind of damage twice."""
    content = (run / name).read_bytes()
    summary = (run / "summary.json").read_bytes()
    refused = 0
    for damaged, command in zip(damages(content, seed=len(name)), cycle(COMMANDS), strict=False):
        (run / "summary.json").write_bytes(summary)
        (run / name).write_bytes(damaged)
        if command is resume:
            (run / "summary.json").unlink()
        try:
            command(run)
        except (ConfigurationError, SystemExit) as error:  # a stored command may exit
            assert "\n" not in str(error)
            assert isinstance(error, ConfigurationError) or error.code == 2
            refused += 1
    assert refused > TIMES / (2 * len(COMMANDS))
    if name.endswith(".csv"):
        assert not list(run.glob("checkpoints/damaged*"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "is damaged: it has no "),
        ("[]", r"it has \[\] in place of names and values"),
        ("null", "it has None in place of"),
        ('{"command": 3}', "its command is 3"),
        ("", "cannot be read: Expecting value: line 1"),
        ('{"config": ', "cannot be read"),
        ("[" * 100_000, "cannot be read: .*recursion"),
    ],
)
def test_a_description_with_wrong_contents_is_refused(text, message, run):
    (run / "config.json").write_text(text)
    for command in (resume, diagnosed, plotted, compared):
        with pytest.raises(ConfigurationError, match=message) as caught:
            command(run)
        assert "config.json" in str(caught.value)


@pytest.mark.parametrize("name", ["metrics.csv", "evaluations.csv"])
@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (lambda lines: lines[:3] + lines[4:], 4),  # a row is missing
        (lambda lines: [*lines[:3], lines[2], *lines[3:]], 4),  # a row occurs twice
        (lambda lines: [*lines[:3], lines[3].replace(b",", b",x", 1), *lines[4:]], 4),
        (lambda lines: [*lines[:3], lines[3].rpartition(b",")[0] + b"\r\n", *lines[4:]], 4),
        (lambda lines: [*lines[:3], b"\xff" + lines[3], *lines[4:]], 4),
        (lambda lines: [*lines[:3], lines[3][:5] + b"\0" + lines[3][5:], *lines[4:]], 4),
        (lambda lines: [lines[0].replace(b"update", b"updaxe"), *lines[1:]], 1),
    ],
)
def test_a_damaged_table_is_refused_with_its_line(name, spoil, line, run):
    lines = (run / name).read_bytes().splitlines(keepends=True)
    (run / name).write_bytes(b"".join(spoil(lines)))
    (run / "summary.json").unlink()
    with pytest.raises(
        ConfigurationError, match=rf"Line {line} of .*{name} is damaged: .*Restore the"
    ):
        resume(run)


def test_a_column_of_another_name_is_refused(run):
    content = (run / "metrics.csv").read_bytes()
    (run / "metrics.csv").write_bytes(content.replace(b"kl_max", b"kl_mix"))
    (run / "summary.json").unlink()
    shutil.rmtree(run / "checkpoints" / "6")
    with pytest.raises(ConfigurationError, match=r"columns of .* differ .* in kl_max, kl_mix\."):
        train("CartPole-v1", CONFIG, **OPTIONS, out=run, resume=True)


def test_evaluations_that_end_early_are_repeated(run, capsys):
    lines = (run / "evaluations.csv").read_bytes().splitlines(keepends=True)
    (run / "evaluations.csv").write_bytes(b"".join(lines[:5]))  # up to update 2
    (run / "summary.json").unlink()
    plan = plan_of(["--resume", str(run)])
    with ExitStack() as stack:
        assert open_folder(plan, stack).num_updates == 4
    assert "evaluations.csv ends before update 6" in capsys.readouterr().err


@pytest.mark.parametrize("kept", [1, 5, 7])
def test_an_evaluation_that_was_stopped_is_done_after_resuming(kept, run, finished):
    lines = (run / "evaluations.csv").read_bytes().splitlines(keepends=True)
    (run / "evaluations.csv").write_bytes(b"".join(lines[:kept]))
    (run / "summary.json").unlink()
    found = train("CartPole-v1", CONFIG, **OPTIONS, out=run, resume=True).evaluations
    before = read_metrics(finished / "evaluations.csv")
    for name in before.keys() - {"seconds", "evaluation_seconds"}:
        np.testing.assert_allclose(found[name], before[name], rtol=1e-6, err_msg=name)


@pytest.fixture
def swept(tmp_path, monkeypatch):
    """A finished sweep with invented results."""

    def fake(plan, compilation, pending, results, console):
        for index, seed in pending:
            numbers = dict.fromkeys(sweep_ranking.measured_with(()), float(index + seed))
            results[index, seed] = {"setting": index, "seed": seed, **numbers}
        rows = sweep.table(plan, results)
        write_csv(plan.folder / "results.csv", list(rows[0]), [row.values() for row in rows])

    monkeypatch.setattr(sweep, "run_compilation", fake)
    monkeypatch.setattr(sweep, "write_figures", lambda found: None)
    go_on(tmp_path / "sweep")
    return tmp_path / "sweep"


def go_on(folder):
    grid = {"max_kl": [0.003, 0.01], "num_envs": [2, 4]}
    options = {"seeds": 2, "total_steps": 192, "progress": False, "out": folder}
    return sweep.sweep("CartPole-v1", CONFIG, grid=grid, **options).results


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sweep.json", "results.csv"])
def test_a_damaged_file_of_a_sweep_gives_an_error_or_does_no_harm(name, swept):
    content, before = (swept / name).read_bytes(), go_on(swept)
    results = (swept / "results.csv").read_bytes()
    refused = 0
    for damaged in [*damages(content, seed=3), b"{}", b"[]", b"null"]:
        (swept / "results.csv").write_bytes(results)
        (swept / name).write_bytes(damaged)
        try:
            found = go_on(swept)
        except ConfigurationError as error:
            assert "\n" not in str(error)
            assert name in str(error) or "The sweep in" in str(error)
            refused += 1
            continue
        places = [(row["setting"], row["seed"], row["max_kl"]) for row in found]
        assert places == [(row["setting"], row["seed"], row["max_kl"]) for row in before]
    assert refused > TIMES / 3


def test_a_folder_in_use_is_refused_by_every_command_that_writes(swept, run, capsys):
    argv = ["--algorithms", "trpo", "--total-steps", "2048", "--out", str(swept)]
    with locked(swept):
        with pytest.raises(ConfigurationError, match="at this moment"):
            go_on(swept)
        assert "at this moment. Wait" in refusal(compare.main, argv, capsys)
    (run / "summary.json").unlink()
    with locked(run):
        assert "at this moment. Wait" in refusal(script.main, ["--resume", str(run)], capsys)
