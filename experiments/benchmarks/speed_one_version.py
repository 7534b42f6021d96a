"""Measures the version of the library that Python imports, and prints the numbers as JSON.

`speed_versions.py` starts this script for an old and for the new version of the library. So the
script uses only functions that both versions have.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

STATES = {"64 x 64": 2_048, "256 x 256": 65_536}
HOST_TASKS = ("Hopper-v4", "HalfCheetah-v4")
HOST_SEEDS = 2
UPDATES = 5  # in each turn of training
BUSY = ("--total-steps", "1e9", "--num-seeds", "8")  # a run that goes on until it is killed


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the script and returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("parts", nargs="+", choices=MEASURES, help="what to measure")
    help_text = "folder of the version: the scripts that it starts are from here"
    parser.add_argument("--checkout", type=Path, required=True, metavar="FOLDER", help=help_text)
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="number of turns")
    args = parser.parse_args(argv)
    found: dict[str, float] = {}
    for part in args.parts:
        found |= MEASURES[part](args.checkout, args.repeats)
    print(json.dumps(found))
    return 0


def measure_products(checkout: Path, repeats: int) -> dict[str, float]:
    """Returns the speed of a Fisher-vector product, as a share of that of a matrix product."""
    import jax
    import speed_pieces as pieces
    from timing import time_in_turns

    found = {}
    matrix = jax.random.normal(jax.random.key(0), (pieces.MATRIX, pieces.MATRIX))
    multiply = jax.jit(lambda x: x @ x)
    for net in pieces.nets():
        if net.name not in STATES:
            continue
        functions, arguments = pieces.prepare(net, STATES[net.name])
        solve = jax.jit(functions["conjugate gradient, 10 iterations"])
        calls = {"solve": partial(solve, *arguments), "matrix": lambda: multiply(matrix)}
        seconds = time_in_turns(calls, repeats)
        operations = pieces.CG_ITERS * product_operations(arguments[0], STATES[net.name])
        rates = operations / seconds["solve"], 2 * pieces.MATRIX**3 / seconds["matrix"]
        name = f"product, {net.name}, {STATES[net.name]:,} states"
        found[f"{name}: ms"] = 1e3 * median(seconds["solve"]) / pieces.CG_ITERS
        found[f"{name}: share of the matrix rate"] = median(rates[0] / rates[1])
    return found


def product_operations(params: Any, num_states: int) -> int:
    """Returns the operations of a product with the Fisher matrix of fully connected layers.

    The Jacobian and its transpose each multiply every layer's input and every layer's weights. The
    input of the first layer does not depend on the parameters.
    """
    import jax

    shapes = [x.shape for x in jax.tree.leaves(params) if x.ndim == 2]
    widths = {outputs for _, outputs in shapes}
    first = sum(inputs * outputs for inputs, outputs in shapes if inputs not in widths)
    return 4 * num_states * (2 * sum(inputs * outputs for inputs, outputs in shapes) - first)


def measure_update(checkout: Path, repeats: int) -> dict[str, float]:
    """Returns the milliseconds of the parts of an update of TRPO on CartPole-v1."""
    import speed_peers as peers

    return {
        f"update on CartPole-v1, {name}: ms": 1e3 * seconds
        for name, seconds in peers.seconds_of_an_update(repeats).items()
    }


def measure_start(checkout: Path, repeats: int) -> dict[str, float]:
    """Returns the seconds of the start of a process: of `--help`, and to the first update.

    "cold" is with an empty cache of compiled programs, and "warm" is with the cache of the cold
    run. Both are seconds beyond the import of jax, which takes turns with them.
    """
    train = [sys.executable, str(checkout / "experiments" / "train.py")]
    rows: dict[str, list[float]] = {"help": [], "jax": [], "cold": [], "warm": []}
    for _ in range(repeats):
        rows["help"].append(seconds_of([*train, "--help"]))
        rows["jax"].append(seconds_of([sys.executable, "-c", "import jax"]))
        with tempfile.TemporaryDirectory() as folder:
            for name in ("cold", "warm"):
                out = Path(folder, name)
                environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": f"{folder}/programs"}
                rows[name].append(seconds_to_update([*train, *BUSY], out, environment))
    beyond = lambda name: median([a - b for a, b in zip(rows[name], rows["jax"], strict=True)])
    return {
        "train.py --help: s": median(rows["help"]),
        "import of jax: s": median(rows["jax"]),
        "train.py to its first update, cold, beyond the import of jax: s": beyond("cold"),
        "train.py to its first update, warm, beyond the import of jax: s": beyond("warm"),
    }


def seconds_of(command: Sequence[str]) -> float:
    """Returns the seconds of a command."""
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def seconds_to_update(command: Sequence[str], out: Path, environment: dict[str, str]) -> float:
    """Returns the seconds until a run writes the metrics of its first update, and kills the run.

    Raises:
        RuntimeError: if the run ends before.
    """
    started = time.perf_counter()
    words = [*command, "--out", str(out)]
    process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL)
    try:
        while not has_update(out / "metrics.csv"):
            if process.poll() is not None:
                raise RuntimeError(f"{shlex.join(words)} ended with {process.returncode}")
            time.sleep(0.01)
        return time.perf_counter() - started
    finally:
        process.kill()
        process.wait()


def has_update(file: Path) -> bool:
    """Returns whether a file of metrics has a line below its first line."""
    return file.is_file() and file.read_bytes().count(b"\n") > 1


def measure_host(checkout: Path, repeats: int) -> dict[str, float]:
    """Returns the speed of training on EnvPool, as a share of EnvPool's own speed."""
    import envpool
    import jax
    import numpy as np

    from trpo_jax.cli.run_flags import plan_of
    from trpo_jax.running.loop import compile_program

    found = {}
    for task in HOST_TASKS:
        run = plan_of(["--env", f"envpool/{task}", "--num-seeds", str(HOST_SEEDS)])
        num_envs, steps = run.config.num_envs, run.algorithm.steps_per_update * UPDATES
        pool = envpool.make_gymnasium(task, num_envs=num_envs, seed=0)
        size = pool.action_space.shape[-1]
        random = np.random.default_rng(0)
        actions = random.uniform(-1, 1, (steps // num_envs, num_envs, size))
        pool.reset()
        alone, training = [], []
        with closing(compile_program(run.algorithm, run.seeds, UPDATES)) as program:
            state, _ = program.advance(program.state, UPDATES)
            for _ in range(repeats):
                started = time.perf_counter()
                for action in actions:
                    pool.step(action)
                between = time.perf_counter()
                state, _ = jax.block_until_ready(program.advance(state, UPDATES))
                alone.append(steps / (between - started))
                training.append(HOST_SEEDS * steps / (time.perf_counter() - between))
        share = median([a / b for a, b in zip(training, alone, strict=True)])
        found[f"envpool/{task}, {HOST_SEEDS} seeds: steps/s"] = median(training)
        found[f"envpool/{task}, {HOST_SEEDS} seeds: share of EnvPool's own speed"] = share
    return found


MEASURES: dict[str, Callable[[Path, int], dict[str, float]]] = {
    "products": measure_products,
    "update": measure_update,
    "start": measure_start,
    "host": measure_host,
}

if __name__ == "__main__":
    sys.exit(main())
