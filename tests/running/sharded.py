"""Runs on several devices, for a process of its own: `python sharded.py FOLDER ALGORITHM ...`.

For each algorithm, `trpo-gru` being one with a memory, it runs the same seeds on one device, split
by runs and split by environments, stopped and gone on in the middle, and writes what came of them
and what the programs communicate.
"""

import json
import sys
from pathlib import Path

import numpy as np
import probes
from collectives import collectives

from trpo_jax import algorithms, envs
from trpo_jax.devices import choose_devices, split_environments, split_runs
from trpo_jax.processes import to_host
from trpo_jax.records.checkpoints import to_arrays, to_state
from trpo_jax.running.program import as_seeds, compile_runs

CONFIG = {"num_envs": 8, "num_steps": 16, "hidden_sizes": (8,), "critic_epochs": 2}
CONFIG |= {"critic_minibatches": 4}
OWN = {"qprop": {"replay_size": 600, "q_updates": 4}, "trpo_vine": {"num_states": 8}}
SEEDS = (3, 4, 5, 6)
HALF = 5  # updates before and after the stop


def make(name, **changes):
    name, _, memory = name.partition("-")
    module = algorithms.get(name)
    env = probes.fit_for(name, envs.make("Pendulum-v1" if name == "qprop" else "CartPole-v1"))
    own = OWN.get(name, {}) | ({"memory": memory, "memory_size": 4} if memory else {})
    return module.make(env, module.Config(**CONFIG | own | changes))


def run(name, placement):
    """Returns the arrays of the last state and of all metrics, by name, and the collectives."""
    runs = compile_runs(lambda _: make(name), len(SEEDS), (), HALF, placement)
    state, first = runs.advance(runs.init(as_seeds(SEEDS), ()), (), HALF)
    stored = to_arrays(state)
    state, second = runs.advance(to_state(runs.init(as_seeds(SEEDS), ()), stored), (), HALF)
    first, second = to_host((first, second))
    metrics = {k: np.concatenate([first[0][k], second[0][k]], axis=1) for k in first[0]}
    return to_arrays(state) | metrics, collectives(runs.executable.as_text())


def main(folder, names):
    devices = choose_devices(None)
    said = {"devices": len(devices)}
    for name in names:
        placements = {
            "one": None,
            "runs": split_runs(devices),
            "environments": split_environments(devices, make(name)),
        }
        for split, placement in placements.items():
            arrays, found = run(name, placement)
            np.savez(folder / f"{name}-{split}.npz", **arrays)
            said[f"{name}-{split}"] = [(x.kind, x.num_bytes, x.source) for x in found]
    (folder / "said.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
