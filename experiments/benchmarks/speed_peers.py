"""Compares TRPO with the TRPO of sb3-contrib, which does the same work."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from timing import time_in_turns

from trpo_jax import envs
from trpo_jax.algorithms import trpo
from trpo_jax.running.loop import compile_program

HERE = Path(__file__).parent
PEER_SCRIPT = HERE / "peer_sb3.py"
INSTALL = (
    "python3 -m venv runs/peers && runs/peers/bin/pip install torch sb3-contrib 'gymnasium[mujoco]'"
)

# The defaults of sb3-contrib, with 8 environments of 256 steps.
SAME_WORK = {
    "num_envs": 8,
    "num_steps": 256,
    "cg_iters": 15,
    "critic_epochs": 10,
    "critic_minibatches": 16,
}
A_QUARTER = {"fisher_subsample": 4}  # a default of the library: a quarter of the states
UPDATES = 4  # in each turn


def speed_beside_sb3(
    python: Path, env_name: str, settings: dict[str, Any], peer_env: str, repeats: int
) -> dict[str, Any]:
    """Returns steps per second of one seed of this library and of sb3-contrib, in turns.

    Args:
        python: a Python interpreter that has sb3-contrib.
        env_name: name of the task in this library.
        settings: settings in which this library differs from `SAME_WORK`.
        peer_env: name of the task in Gymnasium.
        repeats: number of turns.
    """
    algorithm = trpo.make(envs.make(env_name), trpo.Config(**SAME_WORK, **settings))
    steps = algorithm.steps_per_update * UPDATES
    own, peer = [], []
    with (
        closing(compile_program(algorithm, (0,), UPDATES)) as program,
        peer_process([python, PEER_SCRIPT, "speed", "--env", peer_env]) as train_peer,
    ):
        state, _ = program.advance(program.state, UPDATES)
        train_peer(steps)
        for _ in range(repeats):
            started = time.perf_counter()
            state, _ = jax.block_until_ready(program.advance(state, UPDATES))
            own.append(steps / (time.perf_counter() - started))
            peer.append(steps / train_peer(steps))
    return {
        "env": env_name,
        "settings": settings,
        "peer_env": peer_env,
        "own": float(np.median(own)),
        "peer": float(np.median(peer)),
        "ratio": float(np.median(np.divide(own, peer))),
    }


@contextmanager
def peer_process(command: Sequence[Any]) -> Iterator[Callable[[int], float]]:
    """Starts a process that trains a peer. Gives a function `steps -> seconds` that uses it.

    The process prints one line when it is ready. Then it reads numbers of steps, and prints the
    seconds that each training took.
    """
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        process.stdout.readline()

        def train(steps: int) -> float:
            process.stdin.write(f"{steps}\n")
            return float(process.stdout.readline())

        try:
            yield train
        finally:
            process.kill()


def seconds_of_an_update(repeats: int) -> dict[str, float]:
    """Returns the median seconds of the parts of an update with `SAME_WORK` on CartPole-v1."""
    algorithm = trpo.make(envs.make("CartPole-v1"), trpo.Config(**SAME_WORK))
    state = jax.jit(algorithm.init)(jax.random.key(0))
    collect, improve, fit = map(jax.jit, (algorithm.collect, algorithm.improve, algorithm.fit))
    collected, trajectory = collect(state)
    improved, fit_input, _ = improve(collected, trajectory)
    calls = {
        "collect": lambda: collect(state),
        "policy": lambda: improve(collected, trajectory),
        "critic": lambda: fit(improved.critic, fit_input),
    }
    return {name: float(np.median(x)) for name, x in time_in_turns(calls, repeats).items()}


def seconds_to_return(python: Path, seeds: Sequence[int]) -> dict[str, list[dict[str, float]]]:
    """Returns the seconds from the start of a process to a CartPole return of 475, for each seed.

    "cold" is this library with an empty cache of compiled programs. "warm" is this library with the
    cache of the cold run.
    """
    peer = [python, PEER_SCRIPT, "reach", "--env", "CartPole-v1"]
    own = [sys.executable, HERE / "reach_return.py"]
    rows = {"cold": [], "warm": [], "sb3-contrib": []}
    for seed in seeds:
        with tempfile.TemporaryDirectory() as cache:
            environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache}
            for name in ("cold", "warm"):
                rows[name].append(run_seconds([*own, "--seed", str(seed)], environment))
        rows["sb3-contrib"].append(run_seconds([*peer, "--seed", str(seed)], None))
    return rows


def run_seconds(command: Sequence[Any], environment: dict[str, str] | None) -> dict[str, float]:
    """Returns the seconds of a command, and the steps and the seconds of its parts that it prints.

    Raises:
        CalledProcessError: if the command fails.
    """
    started = time.perf_counter()
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    seconds = time.perf_counter() - started
    parts = json.loads(done.stdout.splitlines()[-1])
    steps = parts.pop("steps")
    start = {"start": seconds - sum(parts.values())} if parts else {}
    return {"steps": steps, "seconds": seconds, **start, **parts}
