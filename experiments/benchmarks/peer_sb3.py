"""Trains the TRPO of sb3-contrib for `speed.py`.

`speed.py` starts it as a process, with a Python interpreter that has sb3-contrib. It imports
nothing from this project. `speed` reads numbers of steps from its input. It trains for each number
and prints the seconds. `reach` trains until the last episodes have a high mean return, and prints
the number of steps.
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
    """Ends training when the mean return of the last episodes reaches a threshold."""

    def __init__(self, episodes: int, threshold: float):
        """Stores the number of episodes and the threshold of their mean return."""
        super().__init__()
        self._episodes, self._threshold = episodes, threshold

    def _on_step(self) -> bool:
        returns = [episode["r"] for episode in self.model.ep_info_buffer]
        return len(returns) < self._episodes or sum(returns) / len(returns) < self._threshold


def main() -> None:
    """Runs the script."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    help_text = "speed measures seconds of training, reach counts the steps to a return"
    parser.add_argument("task", choices=("speed", "reach"), help=help_text)
    add = parser.add_argument
    add("--env", required=True, metavar="NAME", help="name of an environment of Gymnasium")
    add("--seed", type=int, default=0, metavar="N", help="seed (default: 0)")
    add("--threads", type=int, default=1, metavar="N", help="threads of PyTorch (default: 1)")
    help_text = "reach: number of last episodes whose mean return counts (default: 20)"
    add("--episodes", type=int, default=20, metavar="N", help=help_text)
    help_text = "reach: mean return that ends training (default: 475)"
    add("--threshold", type=float, default=475.0, metavar="X", help=help_text)
    help_text = "reach: largest number of environment steps (default: 1,000,000)"
    add("--most-steps", type=int, default=1_000_000, metavar="N", help=help_text)
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
