"""The TRPO of sb3-contrib, as `benchmark.py` runs it; needs nothing of this project.

It is started by a Python that has sb3-contrib, as a process of its own. `speed` trains for a number
of steps whenever that number is written to it, and answers with the seconds; `reach` trains until
the last episodes have a return, and answers with the steps.
"""

import argparse
import json
import sys
import time

import gymnasium
import torch
from sb3_contrib import TRPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env


class StopAtReturn(BaseCallback):
    """Ends training when the mean return of the last episodes is as high as asked for."""

    def __init__(self, episodes: int, threshold: float):
        """Takes how many episodes, and their return."""
        super().__init__()
        self._episodes, self._threshold = episodes, threshold

    def _on_step(self) -> bool:
        returns = [episode["r"] for episode in self.model.ep_info_buffer]
        return len(returns) < self._episodes or sum(returns) / len(returns) < self._threshold


def main() -> None:
    """Runs the script."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("task", choices=("speed", "reach"))
    parser.add_argument("--env", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--threshold", type=float, default=475.0)
    parser.add_argument("--most-steps", type=int, default=1_000_000)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = TRPO(
        "MlpPolicy",
        make_vec_env(args.env, n_envs=8, seed=args.seed),
        n_steps=256,
        batch_size=128,
        n_critic_updates=10,
        cg_max_steps=15,
        stats_window_size=args.episodes,
        seed=args.seed,
        device="cpu",
    )
    if args.task == "reach":
        model.learn(args.most_steps, callback=StopAtReturn(args.episodes, args.threshold))
        print(json.dumps({"steps": model.num_timesteps}), flush=True)
        return
    versions = {"torch": torch.__version__, "gymnasium": gymnasium.__version__}
    print(versions, flush=True)
    for line in sys.stdin:
        started = time.perf_counter()
        model.learn(int(line), reset_num_timesteps=False)
        print(time.perf_counter() - started, flush=True)


if __name__ == "__main__":
    main()
