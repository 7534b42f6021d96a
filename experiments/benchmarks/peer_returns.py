"""Trains another library or method on a MuJoCo task of EnvPool, and prints its returns as JSON.

`reproduce.py` starts this script as a process, in an environment that has the library. The script
imports nothing of this project. The libraries train TRPO with the settings that they publish for
MuJoCo: `hyperparams/trpo.yml` of rl-baselines3-zoo, and `examples/mujoco/mujoco_trpo.py` of
tianshou. The cross-entropy method needs no library.
"""

import argparse
import itertools
import json
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import envpool
import numpy as np

EPISODES = 64
POINTS = 100  # of a learning curve
EVALUATION_SEED = 10_000  # added to the seed of a training
Act = Callable[[np.ndarray], np.ndarray]

SB3 = {
    "n_steps": 1024,
    "batch_size": 128,
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "cg_max_steps": 25,
    "cg_damping": 0.1,
    "n_critic_updates": 20,
    "learning_rate": 1e-3,
}
SB3_OF_TASKS = {"Swimmer": {"gamma": 0.9999}, "HalfCheetah": {"target_kl": 0.04}}


def main() -> None:
    """Runs the script."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("library", choices=LIBRARIES, help="the library or method that trains")
    add("--task", required=True, metavar="NAME", help="name of a task of EnvPool, as in Hopper-v4")
    add("--seed", type=int, default=0, metavar="N", help="seed (default: 0)")
    help_text = "number of environment steps (default: 1,000,000)"
    add("--steps", type=int, default=1_000_000, metavar="N", help=help_text)
    args = parser.parse_args()
    started = time.perf_counter()
    curve = Curve()
    train, packages = LIBRARIES[args.library]
    act = train(args.task, args.seed, args.steps, curve)
    seconds = time.perf_counter() - started
    found = {
        "library": args.library,
        "task": args.task,
        "seed": args.seed,
        "steps": args.steps,
        "seconds": round(seconds, 1),
        "returns": play(args.task, args.seed, act),
        "curve": curve.points(args.steps),
        "versions": {name: version(name) for name in packages},
    }
    print(json.dumps(found), flush=True)


class Curve:
    """The returns of the episodes of a training."""

    def __init__(self):
        """Starts without an episode."""
        self.steps, self.ends, self.returns, self._sums = 0, [], [], 0.0

    def add(self, rewards: np.ndarray, done: np.ndarray) -> None:
        """Adds one step of every environment."""
        self._sums = self._sums + rewards
        self.count(len(rewards), self._sums[done])
        self._sums = np.where(done, 0.0, self._sums)

    def count(self, steps: int, returns: np.ndarray) -> None:
        """Adds steps, and the returns of the episodes that ended with them."""
        self.steps += steps
        self.ends += [self.steps] * len(returns)
        self.returns += returns.tolist()

    def points(self, steps: int) -> list[float | None]:
        """Returns the mean return in each hundredth of a training; None where no episode ended."""
        place = np.minimum(np.array(self.ends, int) * POINTS // steps, POINTS - 1)
        returns = np.array(self.returns)
        groups = [returns[place == k] for k in range(POINTS)]
        return [round(float(x.mean()), 2) if len(x) else None for x in groups]


def play(task: str, seed: int, act: Act) -> list[float]:
    """Returns the returns of one fresh episode in each of `EPISODES` environments."""
    envs = envpool.make_gymnasium(task, num_envs=EPISODES, seed=seed + EVALUATION_SEED)
    observations, _ = envs.reset()
    returns, running = np.zeros(EPISODES), np.ones(EPISODES, bool)
    while running.any():
        observations, rewards, terminated, truncated, _ = envs.step(act(observations))
        returns += np.where(running, rewards, 0.0)
        running &= ~(terminated | truncated)
    envs.close()
    return np.round(returns, 3).tolist()


def train_sb3(task: str, seed: int, steps: int, curve: Curve) -> Act:
    """Trains sb3-contrib's TRPO with the settings of rl-baselines3-zoo."""
    import torch
    from sb3_contrib import TRPO
    from stable_baselines3.common.vec_env import VecEnv, VecNormalize

    class Pool(VecEnv):
        def __init__(self):
            self.pool = envpool.make_gymnasium(task, num_envs=2, seed=seed)
            self.render_mode = None
            super().__init__(2, self.pool.observation_space, self.pool.action_space)

        def reset(self):
            return self.pool.reset()[0]

        def step_async(self, actions):
            self.actions = actions

        def step_wait(self):
            observations, rewards, terminated, truncated, _ = self.pool.step(self.actions)
            done = terminated | truncated
            curve.add(rewards, done)
            infos: list[dict[str, Any]] = [{} for _ in done]
            for k in np.flatnonzero(done):
                infos[k]["terminal_observation"] = observations[k].copy()
                infos[k]["TimeLimit.truncated"] = bool(truncated[k] and not terminated[k])
            if done.any():
                ended = np.flatnonzero(done).astype(np.int32)
                observations[ended] = self.pool.reset(ended)[0]
            return observations, rewards, done, infos

        def close(self):
            self.pool.close()

        def get_attr(self, attr_name, indices=None):
            return [getattr(self, attr_name)] * 2

        def set_attr(self, attr_name, value, indices=None):
            setattr(self, attr_name, value)

        def env_method(self, method_name, *args, indices=None, **kwargs):
            raise NotImplementedError

        def env_is_wrapped(self, wrapper_class, indices=None):
            return [False] * 2

    torch.set_num_threads(1)  # several trainings run side by side
    settings = SB3 | SB3_OF_TASKS.get(task.partition("-")[0], {})
    envs = VecNormalize(Pool(), gamma=settings["gamma"])
    model = TRPO("MlpPolicy", envs, seed=seed, device="cpu", **settings)
    model.learn(steps)

    def act(observations):
        return model.predict(envs.normalize_obs(observations), deterministic=True)[0]

    return act


def train_tianshou(task: str, seed: int, steps: int, curve: Curve) -> Act:
    """Trains tianshou's TRPO with the settings of its example for MuJoCo."""
    import torch
    from tianshou.algorithm import TRPO
    from tianshou.algorithm.modelfree.reinforce import ProbabilisticActorPolicy
    from tianshou.algorithm.optim import AdamOptimizerFactory, LRSchedulerFactoryLinear
    from tianshou.data import Batch, Collector, CollectStats, VectorReplayBuffer
    from tianshou.env import VectorEnvNormObs
    from tianshou.env.venv_wrappers import VectorEnvWrapper
    from tianshou.trainer import OnPolicyTrainerParams
    from torch.distributions import Independent, Normal

    class Recorded(VectorEnvWrapper):
        def step(self, action, id=None):
            found = self.venv.step(action, id)
            curve.add(found[1], found[2] | found[3])
            return found

    torch.set_num_threads(1)  # several trainings run side by side
    num_envs, steps_per_update, epochs = 16, 1024, 10
    np.random.seed(seed)
    torch.manual_seed(seed)
    pool = envpool.make_gymnasium(task, num_envs=num_envs, seed=seed)
    envs = VectorEnvNormObs(Recorded(pool))
    actions = pool.action_space
    actor, critic = tianshou_networks(pool.observation_space.shape, actions.shape)
    schedule = LRSchedulerFactoryLinear(
        max_epochs=epochs,
        epoch_num_steps=steps // epochs,
        collection_step_num_env_steps=steps_per_update,
    )
    optimizer = AdamOptimizerFactory(lr=1e-3)
    optimizer.with_lr_scheduler_factory(schedule)
    policy = ProbabilisticActorPolicy(
        actor=actor,
        dist_fn=lambda parts: Independent(Normal(*parts), 1),
        action_scaling=True,
        action_bound_method="clip",
        action_space=actions,
    )
    algorithm = TRPO(
        policy=policy,
        critic=critic,
        optim=optimizer,
        gamma=0.99,
        gae_lambda=0.95,
        return_scaling=True,
        advantage_normalization=True,
        optim_critic_iters=20,
        max_kl=0.01,
        backtrack_coeff=0.8,
        max_backtracks=10,
    )
    buffer = VectorReplayBuffer(4096, num_envs)
    collector = Collector[CollectStats](algorithm, envs, buffer, exploration_noise=True)
    algorithm.run_training(
        OnPolicyTrainerParams(
            training_collector=collector,
            max_epochs=epochs,
            epoch_num_steps=steps // epochs,
            update_step_num_repetitions=1,
            batch_size=None,
            collection_step_num_env_steps=steps_per_update,
            show_progress=False,
            verbose=False,
        )
    )
    statistics = envs.get_obs_rms()
    policy.eval()

    def act(observations):
        with torch.no_grad():
            batch = Batch(obs=statistics.norm(observations), info=Batch())
            mean = policy(batch).logits[0].numpy()
        return policy.map_action(mean)

    return act


def tianshou_networks(observations: tuple[int, ...], actions: tuple[int, ...]) -> tuple[Any, Any]:
    """Returns the actor and the critic of tianshou's example for MuJoCo."""
    import torch
    from tianshou.utils.net.common import Net
    from tianshou.utils.net.continuous import ContinuousActorProbabilistic, ContinuousCritic

    own = {"state_shape": observations, "hidden_sizes": (64, 64), "activation": torch.nn.Tanh}
    actor = ContinuousActorProbabilistic(
        preprocess_net=Net(**own), action_shape=actions, unbounded=True
    )
    critic = ContinuousCritic(preprocess_net=Net(**own))
    torch.nn.init.constant_(actor.sigma_param, -0.5)
    for module in [*actor.modules(), *critic.modules()]:
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.orthogonal_(module.weight, gain=np.sqrt(2))
            torch.nn.init.zeros_(module.bias)
    for module in actor.mu.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.data.mul_(0.01)
    return actor, critic


def train_cross_entropy(task: str, seed: int, steps: int, curve: Curve) -> Act:
    """Trains a network by the cross-entropy method (Szita and Lorincz 2006).

    Each iteration draws the parameters of 32 networks, plays one episode with each, and fits the
    Gaussian to the best quarter. The variance has an extra term that falls to 0 over the training,
    so that it does not shrink too early. The TRPO paper compares with this method.
    """
    population, elite, first_std = 32, 8, 0.5
    random = np.random.default_rng(seed)
    pool = envpool.make_gymnasium(task, num_envs=population, seed=seed)
    sizes = (pool.observation_space.shape[0], 64, 64, pool.action_space.shape[0])
    shapes = list(itertools.pairwise(sizes))
    low, high = pool.action_space.low, pool.action_space.high
    mean = np.zeros(sum((rows + 1) * columns for rows, columns in shapes))
    std = np.full(mean.shape, first_std)

    def actions(params, observations):
        """Returns the action of each network, `[P, A]`, for its own observation, `[P, D]`."""
        start, x = 0, observations
        for layer, (rows, columns) in enumerate(shapes):
            end = start + (rows + 1) * columns
            matrices = params[:, start:end].reshape(-1, rows + 1, columns) / np.sqrt(rows)
            x = np.einsum("pr,prc->pc", x, matrices[:, :-1]) + matrices[:, -1]
            x = np.tanh(x) if layer < 2 else x
            start = end
        return np.clip(x, low, high).astype(pool.action_space.dtype)

    while curve.steps < steps:
        drawn = mean + std * random.standard_normal((population, len(mean)))
        fitness, running = np.zeros(population), np.ones(population, bool)
        observations, _ = pool.reset()
        while running.any():
            ids = np.flatnonzero(running)
            found = pool.step(actions(drawn[ids], observations), ids.astype(np.int32))
            observations, rewards, terminated, truncated, info = found
            order = np.argsort(info["env_id"])
            observations, rewards = observations[order], rewards[order]
            done = (terminated | truncated)[order]
            fitness[ids] += rewards
            curve.count(len(ids), fitness[ids[done]])
            running[ids[done]] = False
            observations = observations[~done]
        best = drawn[np.argsort(fitness)[-elite:]]
        extra = first_std**2 * max(0.0, 1 - curve.steps / (0.8 * steps))
        mean, std = best.mean(axis=0), np.sqrt(best.var(axis=0) + 0.1 * extra)
    return lambda observations: actions(np.tile(mean, (len(observations), 1)), observations)


# For each name: the function that trains, and the packages whose versions matter.
LIBRARIES = {
    "sb3-contrib": (train_sb3, ("sb3-contrib", "torch", "envpool")),
    "tianshou": (train_tianshou, ("tianshou", "torch", "envpool")),
    "cross-entropy": (train_cross_entropy, ("envpool", "numpy")),
}

if __name__ == "__main__":
    main()
