"""Trains TRPO on CartPole-v1 until its last 20 training episodes have a mean return of 475.

The script prints the number of environment steps, and the seconds of compilation and training.
`speed.py` measures the time from the start of the process.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterable, Sequence

import numpy as np
from speed_peers import A_QUARTER, SAME_WORK

from trpo_jax import envs
from trpo_jax.algorithms import trpo
from trpo_jax.analysis.returns import running_return
from trpo_jax.cli.command_line import cache_compilations
from trpo_jax.running.loop import Chunk, compile_program, run_chunks

MOST_UPDATES = 500
THRESHOLD = 475


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the script and returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed (default: 0)")
    seed = parser.parse_args(argv).seed
    cache_compilations()
    algorithm = trpo.make(envs.make("CartPole-v1"), trpo.Config(**SAME_WORK, **A_QUARTER))
    started = time.perf_counter()
    program = compile_program(algorithm, (seed,), 1)
    compiled = time.perf_counter()
    update = first_update_there(run_chunks(program, MOST_UPDATES))
    if update is None:
        print("not reached")
        return 1
    seconds = {
        "compilation": compiled - started,
        "training": time.perf_counter() - compiled,
    }
    print(json.dumps({"steps": update * algorithm.steps_per_update} | seconds))
    return 0


def first_update_there(chunks: Iterable[Chunk]) -> int | None:
    """Returns the first update with a mean return of at least `THRESHOLD`, or None."""
    returns, counts = np.empty((1, 0)), np.empty((1, 0))
    for chunk in chunks:
        returns = np.append(returns, chunk.metrics["episodic_return"], axis=1)
        counts = np.append(counts, chunk.metrics["num_episodes"], axis=1)
        if running_return(returns, counts)[0, -1] >= THRESHOLD:
            return chunk.first_update
    return None


if __name__ == "__main__":
    sys.exit(main())
