"""Tiny Gymnasium environments that can fail, used as `gym/host_tasks:Counter-v0`."""

import multiprocessing
import os

import gymnasium
import numpy as np
from gymnasium import spaces


class Counter(gymnasium.Env):
    """Shows the number of steps of its episode, and a random number that is new in each episode.

    An episode terminates after `length` steps, unless it is truncated before. The environment fails
    at its step number `broken_step`, counted over all episodes. `how` says how it fails.
    """

    observation_space = spaces.Box(-np.inf, np.inf, (2,))
    action_space = spaces.Discrete(2, start=3)
    closed = 0

    def __init__(self, length=100, broken_step=None, how=None):
        self.length, self.broken_step, self.how = length, broken_step, how
        self.steps = self.all_steps = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.episode = 0, self.np_random.uniform()
        if self.how == "nan-reset" and self.all_steps >= self.broken_step:
            self.episode = np.nan
        return self._observation(), {}

    def step(self, action):
        assert action in (3, 4), action
        self.steps += 1
        self.all_steps += 1
        reward = float(action)
        if self.all_steps == self.broken_step:
            if self.how == "raise":
                raise RuntimeError("the floor gave way")
            number = multiprocessing.current_process().name.rpartition("-")[-1]
            if self.how == "exit" and int(number) % 3 == 1:
                os._exit(1)  # one of three processes dies, and the others go on
            if self.how == "nan-observation":
                self.episode = np.nan
            if self.how in ("nan", "inf"):
                reward = float(self.how)
        return self._observation(), reward, self.steps >= self.length, False, {}

    def close(self):
        type(self).closed += 1

    def _observation(self):
        return np.array([self.steps, self.episode], np.float32)


class Unmade(gymnasium.Env):
    """An environment whose constructor fails."""

    def __init__(self):
        raise RuntimeError("no floor")


class Shown(gymnasium.Env):
    """An environment with any spaces, and with any infos of resets and steps."""

    def __init__(self, observation_space, action_space, at_reset=None, at_step=None):
        self.observation_space, self.action_space = observation_space, action_space
        self.at_reset, self.at_step = at_reset or {}, at_step

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self.observation_space.sample(), self.at_reset

    def step(self, action):
        assert self.action_space.contains(action), action
        return self.observation_space.sample(), 0.0, False, False, self.at_step


def register(name, entry_point, **kwargs):
    """Registers an environment of this module, unless it is registered already."""
    if name not in gymnasium.registry:
        gymnasium.register(name, f"host_tasks:{entry_point}", disable_env_checker=True, **kwargs)


register("Counter-v0", "Counter", max_episode_steps=5)
register("Unmade-v0", "Unmade")
register("Shown-v0", "Shown")
register("Short-v0", "Counter", max_episode_steps=5, kwargs={"length": 3})
for how in ("raise", "exit", "nan", "inf", "nan-observation", "nan-reset"):
    kwargs = {"broken_step": 4, "how": how}
    register(f"Broken-{how}-v0", "Counter", max_episode_steps=5, kwargs=kwargs)
    register(f"Late-{how}-v0", "Counter", max_episode_steps=5, kwargs={**kwargs, "broken_step": 70})
