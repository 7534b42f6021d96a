"""Writes folders of runs with made-up numbers."""

import json

import numpy as np

COLUMNS = "seed,update,env_steps,seconds,episodic_return,episode_length,num_episodes"


def write_run(
    folder,
    env="CartPole-v1",
    algorithm="trpo",
    returns=((1.0, 2.0, 3.0),),
    seeds=None,
    steps_per_update=100,
    total_steps=None,
    evaluations=None,
    costs=None,
    **config,
):
    """Writes a run in which each seed ends 20 episodes of the given mean return in every update.

    Args:
        returns: mean returns, `[num_seeds, U]`.
        evaluations: final score of each seed; None for an unfinished run.
        costs: mean costs of the same episodes, `[num_seeds, U]`; None without costs.
    """
    returns = np.asarray(returns, float)
    num_seeds, num_updates = returns.shape
    seeds = range(num_seeds) if seeds is None else seeds
    total_steps = total_steps or num_updates * steps_per_update
    description = {"env": env, "algorithm": algorithm, "total_steps": total_steps, "config": config}
    rows = [
        f"{seed},{u + 1},{(u + 1) * steps_per_update},0.1,{returns[i, u]},9,20"
        + ("" if costs is None else f",{costs[i][u]}")
        for u in range(num_updates)
        for i, seed in enumerate(seeds)
    ]
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(description))
    columns = COLUMNS if costs is None else f"{COLUMNS},episodic_cost"
    (folder / "metrics.csv").write_text("\n".join([columns, *rows, ""]))
    if evaluations is not None:
        summary = {"evaluation": {"per_seed": list(evaluations)}}
        (folder / "summary.json").write_text(json.dumps(summary))
