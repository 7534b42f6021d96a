"""Five tiny environments. Each one isolates one possible mistake of a learning algorithm.

They follow Andy Jones, "Debugging reinforcement learning systems" (2021). The first three ignore
the action. With `continuous`, actions are numbers instead of choices.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from trpo_jax import algorithms
from trpo_jax.algorithms.configs import Team
from trpo_jax.envs.base import Environment, StepResult
from trpo_jax.envs.costs import with_cost
from trpo_jax.envs.specs import Agents, ArraySpec, Box, Discrete, split_mask, with_parts
from trpo_jax.teams import keys_of


def probe(name, observe, reward, num_steps=1, continuous=False):
    """Returns an environment with one hidden sign and episodes of `num_steps` steps."""

    def reset(key):
        sign = jnp.where(jax.random.bernoulli(key), 1.0, -1.0)
        state = (sign, jnp.zeros((), jnp.int32))
        return state, observe(*state)

    def step(key, state, action):
        sign, step_index = state
        state = (sign, step_index + 1)
        done = step_index + 1 >= num_steps
        result = reward(sign, step_index, action)
        return state, StepResult(
            observe(*state), jnp.asarray(result, jnp.float32), done, jnp.zeros((), bool)
        )

    action = (
        Box(np.full(1, -1.0, np.float32), np.full(1, 1.0, np.float32))
        if continuous
        else Discrete(2)
    )
    return Environment(name, reset, step, ArraySpec((1,), np.dtype(np.float32)), action, None)


def constant_value(continuous=False):
    """The value is 1."""
    return probe(
        "constant value", lambda s, t: jnp.zeros(1), lambda s, t, a: 1.0, continuous=continuous
    )


def value_of_observation(continuous=False):
    """The value is the observation."""
    return probe(
        "value of observation", lambda s, t: s[None], lambda s, t, a: s, continuous=continuous
    )


def discounting(continuous=False):
    """The value is gamma, then 1."""
    observe = lambda s, t: t[None].astype(jnp.float32)
    reward = lambda s, t, a: 1.0 * (t == 1)
    return probe("discounting", observe, reward, num_steps=2, continuous=continuous)


def action_choice(continuous=False):
    """The best action is choice 1, or the number 0.5."""
    reward = (lambda s, t, a: -((a[0] - 0.5) ** 2)) if continuous else (lambda s, t, a: 1.0 * a)
    return probe("action choice", lambda s, t: jnp.zeros(1), reward, continuous=continuous)


def action_from_observation(continuous=False):
    """The best choice is 1 if the observation is positive. The best number is half of it."""
    if continuous:
        reward = lambda s, t, a: -((a[0] - 0.5 * s) ** 2)
    else:
        reward = lambda s, t, a: 1.0 * (a == (s > 0))
    return probe("action from observation", lambda s, t: s[None], reward, continuous=continuous)


PROBES = {
    make.__name__: make
    for make in (
        constant_value,
        value_of_observation,
        discounting,
        action_choice,
        action_from_observation,
    )
}


def probe_number(index, continuous=False):
    """Returns a probe by its index. The index may be traced: one program serves all probes."""
    environments = [make(continuous) for make in PROBES.values()]
    choose = lambda functions: lambda *args: jax.lax.switch(index, functions, *args)
    return environments[0]._replace(
        name="one of five",
        reset=choose([env.reset for env in environments]),
        step=choose([env.step for env in environments]),
    )


def counter(time_limit=None, terminates_at=-1, reward=None, visible=True, width=1):
    """An environment that counts its steps.

    It shows the count if `visible`. The default reward is ten times the count before the step.
    """

    def reset(key):
        return jnp.zeros((), jnp.int32), jnp.zeros(width)

    def step(key, count, action):
        new = count + 1
        terminated = new == terminates_at
        observation = jnp.full(width, new, jnp.float32) * visible
        value = jnp.asarray(10.0 * count if reward is None else reward, jnp.float32)
        return new, StepResult(observation, value, terminated, jnp.zeros((), bool))

    spec = ArraySpec((width,), np.dtype(np.float32))
    return Environment("counter", reset, step, spec, Discrete(2), time_limit)


def noise(parts=False, masked=False, joint=False, time_limit=5):
    """An environment of random numbers. Episodes end at random or at the time limit.

    The reward is the first random number of the next observation.

    Args:
        parts: whether an observation also has an integer with 3 values, and an image.
        masked: whether some choices are illegal, different ones in each state.
        joint: whether an action has two numbers and a choice of 3.
        time_limit: most steps of an episode.
    """
    spec = ArraySpec((2,), np.dtype(np.float32))
    if parts:
        number, byte = np.dtype(np.int32), np.dtype(np.uint8)
        spec = {"far": spec, "near": (ArraySpec((), number, (3,)), ArraySpec((4, 4, 1), byte))}
    if masked:
        spec = with_parts(spec, action_mask=ArraySpec((3,), np.dtype(bool)))

    def show(key):
        keys = jax.random.split(key, 5)
        shown = jax.random.normal(keys[0], (2,), jnp.float32)
        if parts:
            picture = jax.random.bits(keys[1], (4, 4, 1), jnp.uint8)
            shown = {
                "far": shown,
                "near": (jax.random.randint(keys[2], (), 0, 3, jnp.int32), picture),
            }
        if not masked:
            return shown
        legal = jax.random.bernoulli(keys[3], 0.3, (3,))
        return with_parts(
            shown, action_mask=legal.at[jax.random.randint(keys[4], (), 0, 3)].set(True)
        )

    def step(key, state, action):
        show_key, end_key = jax.random.split(key)
        shown = show(show_key)
        reward = jax.tree.leaves(split_mask(shown)[0])[0][0]
        ended = jax.random.bernoulli(end_key, 0.1)
        return state, StepResult(shown, reward, ended, jnp.zeros((), bool))

    action = Discrete(3)
    if joint:
        bounds = np.ones(2, np.float32)
        action = {"push": Box(-bounds, bounds), "turn": action}
    reset = lambda key: ((), show(key))
    return Environment("noise", reset, step, spec, action, time_limit)


def team_of(env, count=2, actions=None):
    """Returns a team in which each agent acts in its own copy of an environment.

    The episode of the team ends when the first copy ends.

    Args:
        env: the environment of one agent.
        count: number of agents.
        actions: spec of the action of each agent; None for the spec of the environment.
    """
    row = lambda spec: replace(spec, shape=(count, *spec.shape))

    def reset(key):
        return jax.vmap(env.reset)(keys_of(key, count))

    def step(key, state, action):
        state, result = jax.vmap(env.step)(keys_of(key, count), state, action)
        return state, StepResult(
            result.observation,
            jnp.sum(result.reward),
            jnp.any(result.terminated),
            jnp.any(result.truncated),
        )

    return env._replace(
        reset=reset,
        step=step,
        observation=jax.tree.map(row, env.observation),
        action=Agents(actions or (env.action,) * count),
    )


def fit_for(name, env):
    """Returns an environment that fits an algorithm: with a cost or a team, if it needs one."""
    config = algorithms.get(name).Config()
    if isinstance(config, Team) and env.num_agents is None:
        return team_of(env)
    limited = hasattr(config, "cost_limit") and not env.costs
    return with_cost(env, "cost", lambda observation, action: 0.5) if limited else env
