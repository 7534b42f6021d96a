"""`trpo_jax.train`, called from Python."""

import csv
import dataclasses
import errno
import json
import os
import shutil
import signal
import tempfile
from functools import partial
from pathlib import Path
from types import ModuleType

import host_tasks  # noqa: F401  registers its environments
import jax
import numpy as np
import pytest
from probes import counter

from trpo_jax import envs
from trpo_jax.algorithms import ppo, trpo, vpg
from trpo_jax.analysis.diagnosis import find_warnings
from trpo_jax.analysis.groups import join_runs
from trpo_jax.analysis.returns import running_return
from trpo_jax.cli import train as script
from trpo_jax.cli.run_flags import plan_of
from trpo_jax.envs.base import Pool, StepResult, host_environment
from trpo_jax.envs.specs import ArraySpec, Discrete
from trpo_jax.errors import ConfigurationError, EnvironmentFailure, StorageFailure
from trpo_jax.figures.curves import learning_curve
from trpo_jax.figures.diagnosis_panels import panels
from trpo_jax.records.files import cell, write_json
from trpo_jax.records.policies import load_policy
from trpo_jax.records.runs import SUMMARY, read_metrics, read_run
from trpo_jax.running.defaults import defaults
from trpo_jax.running.loop import NonFiniteError
from trpo_jax.running.plan import plan_run
from trpo_jax.running.results import PolicyFailure
from trpo_jax.running.train import train

pytestmark = [
    pytest.mark.xdist_group("train"),  # one worker, so that the run is shared
    pytest.mark.usefixtures("shared_programs"),
]

TINY = {"num_envs": 2, "num_steps": 16, "hidden_sizes": (8,), "critic_epochs": 1}
TINY |= {"critic_minibatches": 2}
CONFIG = trpo.Config(**TINY)
REMEMBERING = CONFIG.replace(memory="gru", memory_size=4)
RUN = {"seeds": 2, "total_steps": 192, "evaluation_episodes": 2, "progress": False}
HOST = "gym/host_tasks:Counter-v0"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("train") / "run"
    return train("CartPole-v1", CONFIG, **RUN, eval_every=2, checkpoint_every=2, out=out)


def again(out, **changes):
    options = RUN | {"eval_every": 2, "checkpoint_every": 2, "out": out, "resume": True}
    return train("CartPole-v1", CONFIG, **options | changes)


def assert_same(run, expected):
    """Compares two runs. A part of one run may have been read from files."""
    for ours, theirs in (
        (run.metrics, expected.metrics),
        (run.evaluations, expected.evaluations),
    ):
        assert ours.keys() == theirs.keys()
        for name in ours.keys() - {"seconds", "evaluation_seconds"}:
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-6, err_msg=name)
    np.testing.assert_array_equal(run.evaluation.returns, expected.evaluation.returns)
    for a, b in zip(*map(jax.tree.leaves, (run.actor, expected.actor)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_run_holds_its_metrics_and_scores(finished):
    assert finished.seeds == (0, 1)
    assert (finished.num_updates, finished.stopped_by) == (6, None)
    assert all(x.shape == (2, 6) for x in finished.metrics.values())
    np.testing.assert_array_equal(finished.metrics["env_steps"][1], 32 * np.arange(1, 7))
    assert finished.metrics["seed"][:, 0].tolist() == [0, 1]
    assert finished.evaluation.returns.shape == (2, 2)
    assert finished.evaluation.summary.mean == finished.evaluation.per_seed.mean()
    assert finished.evaluations["update"].tolist() == [[0, 2, 4, 6]] * 2
    assert repr(finished).startswith("<Run of TRPO on CartPole-v1, 2 seeds, 6 updates, ")
    title = finished.plot().axes[0].get_title()
    assert title == "TRPO on CartPole-v1: return during training"
    assert finished.plot()._repr_png_().startswith(b"\x89PNG")


def test_the_script_writes_the_same_numbers(finished, tmp_path):
    words = ["--num-seeds", "2", "--total-steps", "192", "--evaluation-episodes", "2"]
    words += ["--num-envs", "2", "--num-steps", "16", "--hidden-sizes", "8", "--quiet"]
    words += ["--critic-epochs", "1", "--critic-minibatches", "2", "--fisher-subsample", "1"]
    words += ["--eval-every", "2", "--checkpoint-every", "2"]
    out = tmp_path / "script"
    assert script.main([*words, "--out", str(out)]) == 0
    with (out / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    for name in finished.metrics.keys() - {"seconds"}:
        ours = [cell(x) for x in finished.metrics[name].T.ravel()]
        assert ours == [row[name] for row in rows], name
    summary = json.loads((out / "summary.json").read_text())
    assert summary["evaluation"]["per_seed"] == finished.evaluation.per_seed.tolist()
    descriptions = (json.loads((x / "config.json").read_text()) for x in (out, finished.folder))
    of_script, of_python = descriptions
    assert set(of_script["command"]) ^ set(of_python["command"]) == {str(out), str(finished.folder)}
    assert of_script["seeds"] == [0, 1]
    different = {name for name, x in of_python.items() if of_script[name] != x}
    assert different <= {"command", "started"}


def test_a_run_without_settings_equals_the_script_without_flags():
    plan, tuned = plan_run(), defaults()
    assert plan.config == tuned.config
    assert (len(plan.seeds), plan.evaluation_episodes) == (8, 64)
    assert plan.description["total_steps"] == 100_000
    assert plan.description["command"] == ["trpo-jax", "train", "--total-steps", "100000"]
    swimmer = defaults("ppo", "envpool/Swimmer-v4", total_steps=5_000).config
    assert isinstance(swimmer, ppo.Config)
    assert (swimmer.decay_steps, swimmer.gamma) == (5_000, 0.9999)
    assert defaults(trpo, "envpool/Pong-v5").config.hidden_sizes == (256,)


def test_policies_of_a_run_act_like_those_of_its_file(finished):
    observations = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    for seed in (None, 1):
        stored = load_policy(finished.folder / "policy.msgpack", seed)
        np.testing.assert_array_equal(finished.policy(seed)(observations), stored(observations))
    with pytest.raises(ConfigurationError, match=r"no seed 7. It has \[0, 1\]"):
        finished.policy(7)


@pytest.mark.slow
def test_a_resumed_run_with_a_memory_gives_the_same_bits(tmp_path):
    options = RUN | {"checkpoint_every": 2, "out": tmp_path / "run"}
    again = partial(train, "CartPole-v1-NoVel", REMEMBERING, **options)
    begun = again(callback=lambda chunk: chunk.last_update >= 2)
    with pytest.raises(ConfigurationError, match="memory_size = 4, not 5"):
        config = REMEMBERING.replace(memory_size=5)
        train("CartPole-v1-NoVel", config, **options, resume=True)
    whole = again(out=tmp_path / "whole")
    assert begun.num_updates < whole.num_updates
    assert_same(again(resume=True), whole)


@pytest.fixture(scope="module")
def remembering(tmp_path_factory):
    """A run that learns nothing, so that little is compiled."""
    out = tmp_path_factory.mktemp("remembering") / "run"
    algorithm = trpo.make(envs.make("CartPole-v1-NoVel"), REMEMBERING)
    return train(algorithm=lazy(algorithm), **RUN, out=out)


def test_policies_with_a_memory_act_like_those_of_their_file(remembering):
    shown = np.random.default_rng(0).normal(size=(20, 50, 2)).astype(np.float32)
    ours, stored = remembering.policy(1), load_policy(remembering.folder, 1)
    found = [ours(x) for x in shown]
    np.testing.assert_array_equal(found, [stored(x) for x in shown])
    ours.start()
    assert (ours(shown[-1]) != found[-1]).any()  # the memory counts


def test_config_json_describes_the_memory_of_the_policies(remembering):
    description = json.loads((remembering.folder / "config.json").read_text())
    config, network = description["config"], description["policy"]["network"]
    assert (config["memory"], config["memory_size"]) == ("gru", 4)
    assert (network["memory"], network["memory_size"]) == ("gru", 4)
    command = plan_run("CartPole-v1-NoVel", REMEMBERING).description["command"]
    assert command[command.index("--memory") + 1] == "gru"


@pytest.mark.slow
def test_a_run_with_a_memory_works_on_the_host(tmp_path):
    run = train("gym/CartPole-v1-NoVel", REMEMBERING, **RUN, out=tmp_path / "run")
    assert run.num_updates == 6
    assert (run.metrics["kl"][:, -1] > 0).all()
    assert (run.evaluation.returns >= 8).all()
    act = load_policy(tmp_path / "run", env=envs.make("CartPole-v1-NoVel"))
    assert act.remembers
    assert act(np.zeros(2)) in (0, 1)


def test_a_callback_sees_each_chunk_and_stops_the_run_which_then_goes_on(finished, tmp_path):
    seen = []

    def callback(chunk):
        seen.append(chunk.last_update)
        return True

    run = again(tmp_path / "run", callback=callback, progress=True)
    assert seen == [1]  # the time of an update is not known yet
    assert (run.num_updates, run.evaluation, run.stopped_by) == (1, None, "callback")
    assert (run.folder / "checkpoints" / "1").is_dir()
    assert "stopped by callback" in repr(run)
    names = {path.name for path in run.folder.iterdir()}
    assert "policy.msgpack" in names
    assert "summary.json" not in names
    assert_same(again(tmp_path / "run"), finished)


@pytest.mark.slow
def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run = train("CartPole-v1", CONFIG, **RUN | {"seeds": [3]})
    assert run.seeds == (3,)
    assert run.folder is None
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_after_ctrl_c_the_run_can_be_resumed(finished, tmp_path):
    def callback(chunk):
        if chunk.last_update == 2:
            os.kill(os.getpid(), signal.SIGINT)

    out = tmp_path / "run"
    run = again(out, callback=callback)
    assert run.stopped_by == "interrupt"
    assert run.metrics["kl"].shape == (2, run.num_updates)
    assert (out / "checkpoints" / str(run.num_updates)).is_dir()
    assert load_policy(out / "policy.msgpack", 1)(np.zeros(4, np.float32)) in (0, 1)
    assert_same(again(out), finished)


@pytest.mark.slow
def test_the_error_about_numbers_that_are_not_finite_holds_the_run():
    config = CONFIG.replace(critic_lr=1e38)
    with pytest.raises(NonFiniteError) as caught:
        train("CartPole-v1", config, **RUN | {"total_steps": 4096})
    run = caught.value.run
    assert run.stopped_by == "NonFiniteError"
    assert run.metrics["kl"].shape[1] == run.num_updates if run.num_updates else not run.metrics
    assert run.policy()(np.zeros(4, np.float32)) in (0, 1)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """The folder for policies that the folder of the run cannot take."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("rival", [False, True])
def test_a_folder_that_is_moved_ends_the_run_and_loses_no_policy(
    tmp_path, elsewhere, rival, capsys
):
    folder = tmp_path / "run"

    def callback(chunk):
        if chunk.last_update == 2:
            folder.rename(tmp_path / "moved")
            if rival:
                folder.mkdir()
                (folder / "metrics.csv").write_text("of another")
                (folder / "config.json").write_text("{}")

    with pytest.raises(StorageFailure, match=r"metrics\.csv is gone.*resume continues") as caught:
        again(folder, callback=callback)
    assert caught.value.run.num_updates == 2
    found = [path.name for path in folder.glob("*")]
    assert sorted(found) == (["config.json", "metrics.csv"] if rival else [])
    assert script.report_failure(caught.value, folder, None) == 1
    assert capsys.readouterr().err.endswith(f". {folder} holds nothing of this run.\n")
    (path,) = elsewhere.glob("*/policy.msgpack")
    assert str(caught.value).endswith(f"The policies are in {path}")
    assert load_policy(path)(np.zeros(4, np.float32)) in (0, 1)
    assert again(tmp_path / "moved").evaluation is not None


def test_a_full_disk_loses_no_policy(tmp_path, elsewhere, monkeypatch):
    def full(path, content):
        if path.is_relative_to(tmp_path / "run") and "config" not in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, content)

    write = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", full)
    message = r"run/policy\.msgpack cannot be written: No space left on device\. The policies are"
    with pytest.raises(PolicyFailure, match=message) as caught:
        train("CartPole-v1", CONFIG, **RUN, out=tmp_path / "run")
    assert caught.value.run.num_updates == 6
    assert len(list(elsewhere.glob("*/policy.msgpack"))) == 1
    assert not list((tmp_path / "run").glob("*.tmp"))


def test_a_folder_in_use_is_refused_and_its_run_continues(tmp_path):
    refused = []

    def callback(chunk):
        with pytest.raises(ConfigurationError, match=r"writes to .*run at this moment") as caught:
            again(tmp_path / "run", seeds=2)
        refused.append(caught.value)

    assert again(tmp_path / "run", callback=callback).stopped_by is None
    assert len(refused) > 2


def test_a_run_works_on_the_host(tmp_path):
    run = train(HOST, vpg.Config(**TINY), **RUN)
    assert run.metrics["episode_length"][:, -1].tolist() == [5, 5]
    assert run.policy(seed=1)(np.zeros(2, np.float32)) in (3, 4)
    breaking = bare(envs.make("gym/host_tasks:Late-raise-v0"))
    with pytest.raises(EnvironmentFailure, match="the floor gave way") as caught:
        train(algorithm=breaking, **RUN, out=tmp_path / "run")
    assert 1 <= caught.value.run.num_updates <= 4
    assert (tmp_path / "run" / "checkpoints" / str(caught.value.run.num_updates)).is_dir()
    assert "host_tasks.py" in (tmp_path / "run" / "error.txt").read_text()


def test_a_resumed_run_keeps_its_origin_of_observations(tmp_path):
    """An environment that shows the time has another origin whenever it is made."""

    def plan(origin, **options):
        spec = ArraySpec((1,), np.dtype(np.float32), origin=origin and np.array([origin]))
        env = host_environment("clock", spec, Discrete(2), None, print)
        return plan_run(env, CONFIG, seeds=2, out=tmp_path / "run", **options)

    first = plan(1_700_000_000_000)
    (tmp_path / "run").mkdir()
    write_json(tmp_path / "run" / "config.json", first.description)
    for origin in (1_700_000_000_777, None):
        later = plan(origin, resume=True)
        for env in (later.env, later.algorithm.env):
            assert env.observation.origin.tolist() == [1_700_000_000_000]
        assert later.description["policy"] == first.description["policy"]


@pytest.mark.slow
def test_evaluation_opens_its_copies_after_training_has_closed_its_own():
    spec = ArraySpec((1,), np.dtype(np.float32))
    opened, most = set(), []

    def open(seeds, num_envs, render=False):
        opened.add(seeds)
        most.append(num_envs * len(opened))
        numbers, flags = np.zeros((num_envs, 1), np.float32), np.zeros(num_envs, bool)
        return Pool(
            lambda mask: numbers[mask],
            lambda actions: StepResult(numbers, numbers[:, 0], flags, flags),
            lambda: opened.discard(seeds),
        )

    env = host_environment("counted", spec, Discrete(2), 5, open)
    train(env, CONFIG, **RUN | {"seeds": 1})
    assert most == [CONFIG.num_envs] * 2
    assert not opened


@pytest.fixture
def unfinished(finished, tmp_path):
    folder = tmp_path / "unfinished"
    shutil.copytree(finished.folder, folder)
    (folder / "summary.json").unlink()
    return folder


def test_other_settings_and_finished_runs_cannot_be_resumed(finished, unfinished):
    with pytest.raises(ConfigurationError, match=r"max_kl = 0.01, not 0.5"):
        train("CartPole-v1", CONFIG.replace(max_kl=0.5), **RUN, out=unfinished, resume=True)
    with pytest.raises(ConfigurationError, match="is finished: its 6 updates are done"):
        again(finished.folder)
    with pytest.raises(ConfigurationError, match="is finished: its 6 updates are done"):
        again(finished.folder, total_steps=100)
    with pytest.raises(ConfigurationError, match="total_steps = 192, not 100"):
        again(unfinished, total_steps=100)
    with pytest.raises(ConfigurationError, match="is not empty"):
        again(finished.folder, resume=False)


def test_the_script_resumes_a_run_that_python_has_started(finished, unfinished):
    shutil.rmtree(unfinished / "checkpoints" / "6")
    assert script.main(["--resume", str(unfinished), "--quiet"]) == 0
    ours, theirs = (read_metrics(x / "metrics.csv") for x in (unfinished, finished.folder))
    np.testing.assert_array_equal(ours["kl"], theirs["kl"])


@pytest.mark.slow
def test_a_finished_run_can_be_made_longer(finished, tmp_path):
    folder = tmp_path / "longer"
    shutil.copytree(finished.folder, folder)
    longer = again(folder, total_steps=320)
    assert_same(longer, again(tmp_path / "whole", total_steps=320))
    before, after = (json.loads((folder / x).read_text()) for x in ("summary-192.json", SUMMARY))
    assert before == json.loads((finished.folder / SUMMARY).read_text())
    assert (before["total_steps"], after["total_steps"]) == (192, 320)
    files = (finished.folder / "policy.msgpack", folder / "policy-192.msgpack")
    assert len({path.read_bytes() for path in files}) == 1
    description = json.loads((folder / "config.json").read_text())
    assert description["total_steps"] == 320
    assert description["command"][description["command"].index("--total-steps") + 1] == "320"
    with pytest.raises(ConfigurationError, match="is finished: its 10 updates are done"):
        again(folder, total_steps=320)


def test_a_longer_run_keeps_its_schedules(tmp_path):
    """By default, the length of a schedule is the number of steps of the run."""
    task = {"env": "Pendulum-v1", "algorithm": "ppo", "schedules": {"clip": "linear:0.2:0.1"}}
    begun = plan_run(**task, total_steps=50_000, out=tmp_path).description
    assert begun["config"]["decay_steps"] == 50_000
    (tmp_path / "config.json").write_text(json.dumps(begun))
    of_script = plan_of(["--resume", str(tmp_path), "--total-steps", "1e6"])
    of_python = plan_run(**task, total_steps=10**6, out=tmp_path, resume=True)
    for plan in (of_script, of_python):
        assert plan.description["config"] == begun["config"]
        assert plan.description["schedules"] == begun["schedules"]
        assert plan.description["total_steps"] == 10**6
        assert plan_of(plan.description["command"][2:]).config == plan.config


def test_a_finished_run_without_a_checkpoint_is_not_repeated(finished, tmp_path):
    folder = tmp_path / "bare"
    shutil.copytree(finished.folder, folder, ignore=shutil.ignore_patterns("checkpoints"))
    with pytest.raises(ConfigurationError, match="has no checkpoint to continue from"):
        again(folder, total_steps=320)
    assert (folder / SUMMARY).is_file()


@pytest.mark.slow
def test_a_run_stops_once_every_seed_has_reached_a_return(tmp_path):
    options = RUN | {"total_steps": 3200, "out": tmp_path / "run"}
    run = train("CartPole-v1", CONFIG, **options, stop_at_return=12.0)
    returns, counts = (run.metrics[x] for x in ("episodic_return", "num_episodes"))
    reached = (running_return(returns, counts) >= 12.0).all(axis=0)[9::10]
    assert run.num_updates == 10 * (1 + reached.argmax()) < 100
    assert not reached[:-1].any()
    assert run.stopped_by == "return"
    assert np.isfinite(run.evaluation.per_seed).all()
    summary = json.loads((tmp_path / "run" / SUMMARY).read_text())
    assert summary["stopped_by"] == "return"
    assert summary["total_steps"] == 32 * run.num_updates
    assert (tmp_path / "run" / "checkpoints" / str(run.num_updates)).is_dir()
    with pytest.raises(ConfigurationError, match="needs the metrics episodic_return"):
        train(algorithm=bare(counter()), **RUN | {"total_steps": 3200}, stop_at_return=1.0)


def broken_for(broken_seed, at):
    """Returns an environment on the host. Its reward is NaN in one training step of one seed."""

    def open(seed, num_envs, render=False):
        steps = 0

        def step(actions):
            nonlocal steps
            steps += 1
            reward = np.full(num_envs, np.nan if (seed, steps) == (broken_seed, at) else 1.0)
            ends = np.full(num_envs, steps % 5 == 0)
            observations = np.full((num_envs, 4), np.sin(steps), np.float32)
            return StepResult(observations, np.float32(reward), ends, np.zeros(num_envs, bool))

        return Pool(step=step, reset=lambda mask: np.zeros((mask.sum(), 4)), close=lambda: None)

    spaces = envs.make("CartPole-v1")
    return host_environment("partly broken", spaces.observation, spaces.action, None, open)


@pytest.mark.slow
def test_a_seed_that_is_not_finite_does_not_change_the_others(tmp_path, monkeypatch, capsys):
    env, out = broken_for(broken_seed=1, at=16 * 2 + 4), tmp_path / "run"
    config = CONFIG.replace(
        normalize_observations=False
    )  # so there are no random actions at the start
    options = RUN | {"seeds": 3, "total_steps": 320, "out": out, "eval_every": 5}

    def stop(chunk):
        return chunk.last_update == 5

    first = train(env, config, **options, callback=stop)
    assert (first.num_updates, list(first.broken)) == (5, [1])
    monkeypatch.setattr(script, "train", lambda **_: train(env, config, **options, resume=True))
    assert script.main(["--out", str(out), "--quiet"]) == 1
    said = capsys.readouterr().err
    assert "Seed 1 stopped: in update 3, environment partly broken returned a reward" in said
    assert said.endswith("The other seeds finished.\n")

    run = read_run(out)
    kl, updates = run.metrics["kl"], run.metrics["update"]
    assert updates.shape == (3, 10)
    assert np.isfinite(kl[[0, 2]]).all()
    assert np.isfinite(kl[1]).tolist() == [True] * 2 + [False] * 8
    evaluated = read_metrics(out / "evaluations.csv")["evaluation_return"]
    assert np.isfinite(evaluated).tolist() == [[True] * 3, [True, False, False], [True] * 3]
    summary = json.loads((out / SUMMARY).read_text())
    assert summary["broken_seeds"]["1"]["update"] == 3
    assert [x is None for x in summary["evaluation"]["per_seed"]] == [False, True, False]
    policy = load_policy(out / "policy.msgpack", 1)  # the last finite policy
    assert policy(np.zeros(4, np.float32)) in (0, 1)

    # The commands that read the folder of a run accept NaN.
    find_warnings(run)
    assert panels(run)
    group = join_runs([("trpo", run)], 20)["partly broken"]["trpo"]
    assert np.isfinite(group.returns[0, -1])
    assert np.isnan(group.returns[1, -1])
    assert learning_curve(updates[0], run.metrics["episodic_return"], "")


def lazy(algorithm):
    """Returns the algorithm, but it learns nothing and returns no metrics."""

    def improve(state, trajectory):
        return state._replace(num_updates=state.num_updates + 1), (), {}

    return algorithm._replace(improve=improve, fit=lambda critic, _: (critic, {}))


def bare(env):
    """Returns an algorithm that learns nothing, has no config, and returns no metrics."""
    return lazy(trpo.make(env, CONFIG))._replace(config=None)


def test_an_algorithm_may_return_no_metrics(tmp_path, capsys):
    algorithm = bare(counter())
    out = tmp_path / "run"
    options = RUN | {"progress": True, "out": out}
    run = train(algorithm=algorithm, **options)
    assert set(run.metrics) == {"seed", "update", "env_steps", "seconds"}
    assert run.evaluation.per_seed.shape == (2,)
    assert "update 6/6  " in capsys.readouterr().out
    description = json.loads((out / "config.json").read_text())
    assert (description["config"], description["command"]) == ({}, None)
    names = {path.name for path in out.iterdir()}
    assert {"config.json", "metrics.csv", "summary.json"} <= names
    assert "learning_curve.png" not in names
    with pytest.raises(ConfigurationError, match="no metric episodic_return"):
        run.plot()
    (out / "summary.json").unlink()
    with pytest.raises(SystemExit, match="2"):
        script.main(["--resume", str(out)])
    assert "and resume=True" in capsys.readouterr().err
    shutil.rmtree(out / "checkpoints", ignore_errors=True)
    assert train(algorithm=algorithm, **options, resume=True).num_updates == 6


def test_the_config_or_the_argument_decides_the_module():
    assert plan_run(config=ppo.Config()).name == "ppo"
    assert plan_run(algorithm=ppo).name == "ppo"
    own = ModuleType("mine")
    own.Config, own.make = trpo.Config, trpo.make
    plan = plan_run(algorithm=own, config=CONFIG)
    assert (plan.name, plan.description["command"]) == ("mine", None)
    assert plan_run(counter(), CONFIG).description["command"] is None


def test_an_agent_is_handed_to_the_algorithm():
    own, handed = ModuleType("mine"), []
    own.Config = trpo.Config
    own.make = lambda env, config, **options: handed.append(options) or trpo.make(env, config)
    assert plan_run(algorithm=own, config=CONFIG, agent="mine").description["command"] is None
    plan_run(algorithm=own, config=CONFIG)
    assert handed == [{"agent": "mine"}, {}]


@dataclasses.dataclass
class Other:
    """A config that belongs to no algorithm."""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"env": "CartPol-v1"}, "Did you mean CartPole-v1"),
        ({"algorithm": "trp"}, "Did you mean trpo"),
        ({"algorithm": "ppo", "config": CONFIG}, "ppo takes a Config of trpo_jax.algorithms.ppo"),
        ({"config": Other()}, "is not the module of an algorithm: it has no Config and no make"),
        ({"config": CONFIG.replace(max_kl=0.0)}, "max_kl = 0.0 cannot work"),
        ({"seeds": 0}, "seeds = 0 must be at least 1"),
        ({"seeds": [1, 1]}, r"seeds = \[1, 1\] must be one or more seeds, and each"),
        ({"seeds": [-1]}, "seed = -1 must be at least 0"),
        ({"total_steps": 10}, "10 is less than one batch"),
        ({"evaluation_episodes": 0}, "evaluation_episodes = 0 must be at least 1"),
        ({"log": ["tensorbord"], "out": "x"}, "Did you mean tensorboard"),
        ({"resume": True}, "need a folder"),
        ({"algorithm": bare(envs.make("CartPole-v1")), "config": CONFIG}, "has its own"),
        ({"algorithm": bare(envs.make("CartPole-v1")), "env": "Pendulum-v1"}, "has its own"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_compiled(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        plan_run(**arguments)
