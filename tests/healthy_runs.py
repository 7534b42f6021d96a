"""A healthy run, as it is read from its folder. Tests change its metrics."""

import csv
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from trpo_jax import algorithms
from trpo_jax.records.runs import StoredRun

STEPS_PER_UPDATE = 1000
OF_LINEAR_SOLVE = ("cg_residual", "step_fraction", "step_rejected", "surrogate_gain_ratio")


def healthy_run(
    algorithm: str = "trpo", num_seeds: int = 3, num_updates: int = 60, **config
) -> StoredRun:
    """Returns a run that learns, with seeds 7, 8, ... and the given fields of its config."""
    shape = (num_seeds, num_updates)
    noise = np.random.default_rng(0).uniform(-1, 1, shape)
    update = np.broadcast_to(np.arange(1.0, num_updates + 1), shape)
    done = update / num_updates
    metrics = {
        "seed": np.broadcast_to(7.0 + np.arange(num_seeds)[:, None], shape),
        "update": update,
        "env_steps": update * STEPS_PER_UPDATE,
        "episodic_return": 100 * done + 5 * noise,
        "num_episodes": np.full(shape, 4.0),
        "kl": 0.007 + 0.002 * noise,
        "kl_max": 0.1 + 0.05 * noise,
        "surrogate_gain": 0.03 + 0.01 * noise,
        "surrogate_gain_ratio": 0.9 + 0.1 * noise,
        "cg_residual": 0.1 + 0.05 * noise,
        "step_fraction": np.where(noise < -0.9, 0.8, 1.0),
        "step_rejected": np.zeros(shape),
        "entropy": 1.4 - 0.8 * done,
        "explained_variance": np.minimum(0.9, 3 * done) + 0.05 * noise,
        "reward_signal": np.ones(shape),
    }
    values = asdict(algorithms.get(algorithm).Config())
    if "max_kl" not in values:
        metrics = {name: x for name, x in metrics.items() if name not in OF_LINEAR_SOLVE}
    description = {
        "env": "CartPole-v1",
        "algorithm": algorithm,
        "total_steps": num_updates * STEPS_PER_UPDATE,
        "config": values | config,
    }
    return StoredRun(Path("somewhere"), description, metrics)


def write_run(folder: Path, run: StoredRun) -> Path:
    """Writes `config.json` and `metrics.csv` of a run, and returns its folder."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(run.description))
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(run.metrics)
        table = np.stack(list(run.metrics.values())).transpose(2, 1, 0)
        rows = table.reshape(-1, len(run.metrics))
        writer.writerows([["" if np.isnan(x) else repr(float(x)) for x in row] for row in rows])
    return folder
