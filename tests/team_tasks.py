"""A tiny environment of PettingZoo, for `pettingzoo/team_tasks:Relay`."""

from typing import ClassVar

import numpy as np
from gymnasium import spaces
from pettingzoo import AECEnv, ParallelEnv

LIMITLESS = 10**6


class Relay(ParallelEnv):
    """Two agents with spaces of their own, which show how many steps there were, and a number.

    `short` leaves the episode after `leaves` steps, and all agents terminate after `length` steps
    or are truncated after `max_cycles`.
    """

    possible_agents = ("long", "short")
    given: ClassVar[list] = []  # the actions of all steps

    def __init__(self, leaves=None, length=LIMITLESS, max_cycles=4, masks=None, state=None, **own):
        self.leaves, self.length, self.max_cycles = leaves, length, max_cycles
        self.masks, self.shown_state = masks, state
        self.seen = own.get("seen") or {
            "long": spaces.Box(-9, 9, (3,)),
            "short": spaces.Box(-9, 9, (2,)),
        }
        self.chosen = own.get("chosen") or {
            "long": spaces.MultiDiscrete([3, 2], np.int8, start=[4, 0]),
            "short": spaces.Discrete(2, start=-1),
        }
        self.random = np.random.default_rng()
        if masks == "observation":
            mask = spaces.Box(0, 1, (5,), np.int8)
            self.seen = {
                x: spaces.Dict(observation=y, action_mask=mask) for x, y in self.seen.items()
            }

    def observation_space(self, agent):
        return self.seen[agent]

    def action_space(self, agent):
        return self.chosen[agent]

    def reset(self, seed=None, options=None):
        if seed is not None:
            self.random = np.random.default_rng(seed)
        self.steps, self.number = 0, self.random.uniform(1, 9)
        self.agents = list(self.possible_agents)
        return self.shown(), self.infos()

    def step(self, actions):
        assert list(actions) == self.agents, actions
        for agent, action in actions.items():
            assert self.chosen[agent].contains(action), (agent, action)
        type(self).given.append(actions)
        self.steps += 1
        shown, infos = self.shown(), self.infos()
        rewards = {agent: {"long": 1.0, "short": 10.0}[agent] for agent in self.agents}
        leaves = lambda agent: agent == "short" and self.steps == self.leaves
        ended = {x: self.steps == self.length or leaves(x) for x in self.agents}
        cut = dict.fromkeys(self.agents, self.steps == self.max_cycles)
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
        return np.int8([0, 1, 1, 1, 0] if agent == "long" else [0, 1])

    def state(self):
        if self.shown_state is None:
            raise NotImplementedError
        return np.full(self.shown_state, self.steps, np.float64)


def odd(**own):
    """Returns a `Relay` whose agents show what their spaces promise."""
    env = Relay(**own)
    env.shown = lambda: {agent: env.seen[agent].sample() for agent in env.agents}
    return env


def in_turns():
    return AECEnv()


def broken():
    raise RuntimeError("no floor")
