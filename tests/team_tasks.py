"""A tiny PettingZoo environment, used as `pettingzoo/team_tasks:Relay`."""

from typing import ClassVar

import numpy as np
from gymnasium import spaces
from pettingzoo import AECEnv, ParallelEnv


class Relay(ParallelEnv):
    """Two agents with different spaces. Both see the number of steps and a random number.

    All agents terminate after `length` steps, or are truncated after `max_cycles` steps. Agent
    `short` alone terminates after `leaves` steps. Agent `long` alone is truncated after `tires`
    steps.
    """

    possible_agents = ("long", "short")
    given: ClassVar[list] = []  # actions of all steps

    def __init__(self, masks=None, state=None, max_cycles=4, own=None, **ends):
        self.masks, self.shown_state, self.max_cycles, self.ends = masks, state, max_cycles, ends
        self.own = {
            "seen": {"long": spaces.Box(-9, 9, (3,)), "short": spaces.Box(-9, 9, (2,))},
            "chosen": {
                "long": spaces.MultiDiscrete([3, 2], np.int8, start=[4, 0]),
                "short": spaces.Discrete(2, start=-1),
            },
            "legal": {"long": [0, 1, 1, 1, 0], "short": [0, 1]},
            **(own or {}),
        }
        self.random = np.random.default_rng()

    def observation_space(self, agent):
        seen = self.own["seen"][agent]
        if self.masks != "observation":
            return seen
        return spaces.Dict(observation=seen, action_mask=spaces.MultiBinary(5))

    def action_space(self, agent):
        return self.own["chosen"][agent]

    def reset(self, seed=None, options=None):
        if seed is not None:
            self.random = np.random.default_rng(seed)
        self.steps, self.number = 0, self.random.uniform(1, 9)
        self.agents = list(self.possible_agents)
        return self.shown(), self.infos()

    def step(self, actions):
        assert list(actions) == self.agents, actions
        for agent, action in actions.items():
            assert self.action_space(agent).contains(action), (agent, action)
        type(self).given.append(actions)
        self.steps += 1
        shown, infos = self.shown(), self.infos()
        rewards = {agent: {"long": 1.0, "short": 10.0}[agent] for agent in self.agents}
        now = lambda name: self.steps == self.ends.get(name)
        ended = {x: now("length") or (now("leaves") and x == "short") for x in self.agents}
        at_limit = self.steps == self.max_cycles and "length" not in self.ends
        cut = {x: at_limit or (now("tires") and x == "long") for x in self.agents}
        self.agents = [x for x in self.agents if not (ended[x] or cut[x])]
        return shown, rewards, ended, cut, infos

    def shown(self):
        arrays = {"long": [self.steps, self.number, -1], "short": [self.steps, self.number]}
        found = {agent: np.array(arrays[agent], np.float32) for agent in self.agents}
        if self.masks != "observation":
            return found
        return {x: {"observation": y, "action_mask": self.mask(x)} for x, y in found.items()}

    def infos(self):
        infos = self.masks == "info"
        return {x: {"action_mask": self.mask(x)} if infos else {} for x in self.agents}

    def mask(self, agent):
        return np.int8(self.own["legal"][agent])

    def state(self):
        if self.shown_state is None:
            raise NotImplementedError
        return np.full(self.shown_state, self.steps, np.float64)


def odd(**own):
    """Returns a `Relay` with other spaces. Its agents see samples of these spaces."""
    env = Relay(own=own)
    env.shown = lambda: {agent: own["seen"][agent].sample() for agent in env.agents}
    return env


def in_turns():
    return AECEnv()


def broken():
    raise RuntimeError("no floor")
