"""Evaluates fixed policies: plays fresh episodes and returns their returns and costs."""

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from trpo_jax.algorithms.base import Actor
from trpo_jax.devices import Placement
from trpo_jax.distributions import Distribution
from trpo_jax.envs.base import Environment
from trpo_jax.envs.episodes import step_episode
from trpo_jax.envs.specs import to_environment_action
from trpo_jax.errors import EnvironmentFailure, NotFinite
from trpo_jax.host_rollout import advance_host_episodes, failures_named, start_host_episodes
from trpo_jax.processes import to_devices, to_host
from trpo_jax.recurrent import restarted
from trpo_jax.rollout import start_episodes
from trpo_jax.running.memory import shortage_named

EVALUATION = 0xE7A1  # separates the keys of evaluations from those of training
# The most steps of an episode without a time limit. Steps on the host are slow Python calls.
DEVICE_STEPS, HOST_STEPS = 100_000, 1_000
SECONDS = 0.2  # shortest time from one message about an evaluation to the next


class Played(NamedTuple):
    """The results of fresh episodes.

    Attributes:
        returns: the undiscounted return of each episode, `[*B, E]`. If an episode was cut, its
            return sums the rewards before the cut.
        cut: whether the limit on steps cut the episode, `[*B, E]`.
        costs: the sums of the costs of each episode, `[*B, E, K]`; `()` if the environment has no
            costs.
    """

    returns: Float[Array | np.ndarray, "*B E"]
    cut: Bool[Array | np.ndarray, "*B E"]
    costs: Float[Array | np.ndarray, "*B E K"] | tuple[()] = ()


def evaluation_bound(env: Environment, max_steps: int | None) -> int:
    """Returns the maximum number of steps of an evaluation episode.

    Args:
        env: the environment, which may have a time limit.
        max_steps: a lower limit, or None.
    """
    bounds = [steps for steps in (max_steps, env.time_limit) if steps is not None]
    return min(bounds, default=DEVICE_STEPS if env.open is None else HOST_STEPS)


def cut_note(cut: np.ndarray, bound: int) -> str | None:
    """Returns a note about the episodes that were cut at a bound, or None if there are none."""
    if not cut.any():
        return None
    return (
        f"{cut.sum():,} of {cut.size:,} evaluation episodes were cut after {bound:,} steps. They "
        "count with their return until then. --evaluation-steps sets another limit."
    )


def evaluate(
    env: Environment,
    act: Callable[[PRNGKeyArray, Any, Any], tuple[Any, Any]],
    key: PRNGKeyArray,
    num_episodes: int,
    max_steps: int | None = None,
    carry: Any = (),
) -> Played:
    """Plays E = `num_episodes` fresh episodes and returns their results.

    All episodes run in parallel until the last one has ended. Each environment plays one episode,
    so short episodes are not over-represented.

    Args:
        env: the environment.
        act: `(key, carry, observations [E, ...]) -> (carry, actions [E, ...])`.
        key: the random key for resets, actions and steps.
        num_episodes: E.
        max_steps: maximum number of steps of an episode; None for the time limit, or
            `DEVICE_STEPS` if there is none.
        carry: the memory of the policy at the start, `[E, ...]`.
    """
    reset_key, run_key = jax.random.split(key)
    step_all = jax.vmap(partial(step_episode, env))
    bound = evaluation_bound(env, max_steps)

    def unfinished(state):
        step, _, _, finished, *_ = state
        return ~jnp.all(finished) & (step < bound)

    def body(state):
        step, carry, episodes, finished, returns, costs = state
        act_key, env_key = jax.random.split(jax.random.fold_in(run_key, step))
        carry, actions = act(act_key, carry, episodes.observation)
        env_keys = jax.random.split(env_key, num_episodes)
        episodes, transition = step_all(env_keys, episodes, actions)
        ended = jnp.where(transition.broken, jnp.nan, transition.total_reward)
        returns = jnp.where(finished, returns, ended)
        if env.costs:
            costs = jnp.where(finished[:, None], costs, transition.total_costs)
        return step + 1, carry, episodes, finished | transition.done, returns, costs

    start = (
        jnp.zeros((), jnp.int32),
        carry,
        start_episodes(env, reset_key, num_episodes),
        jnp.zeros(num_episodes, bool),
        jnp.zeros(num_episodes, jnp.float32),
        jnp.zeros((num_episodes, len(env.costs)), jnp.float32) if env.costs else (),
    )
    *_, finished, returns, costs = jax.lax.while_loop(unfinished, body, start)
    return Played(returns, ~finished, costs)


def make_evaluation(
    env: Environment,
    policy: Callable[[Actor, Any, Any], tuple[Any, Distribution]],
    num_episodes: int,
    *,
    stochastic: bool = False,
    placement: Placement | None = None,
    max_steps: int | None = None,
    num_envs: int | None = None,
    carry: Callable[[int], Any] = lambda num_envs: (),
) -> Callable[..., Played]:
    """Returns a function that plays E = `num_episodes` fresh episodes with the policy of each seed.

    The function is `(actor, seeds, number=0, tell=None) -> Played [num_seeds, E]`. Its result is on
    the host. The leading axis of the actor is `[num_seeds]`. The seed and the number decide the
    episodes. Their random keys are not used in training. The number is 0 for the final evaluation
    of a run, and k for the evaluation after update k. If the environment runs on the host, `tell`
    is called with messages about the progress. If it runs on the device, returns and costs may be
    not finite (see `require_finite_returns`).

    Args:
        env: the environment.
        policy: the policy of the algorithm: `(actor, carry, observations [E, ...]) -> (carry,
            distribution)`.
        num_episodes: E.
        stochastic: whether actions are sampled. Otherwise they are the mode of the distribution.
        placement: the devices that the seeds are split over; None for the default device.
        max_steps: maximum number of steps of an episode; see `evaluation_bound`.
        num_envs: number of copies of an environment on the host; None for E.
        carry: `num_envs -> carry`, the memory of the policy at the start of episodes.
    """
    batched, shardings, place = jax.vmap, {}, lambda values: values
    if placement is not None:
        batched, rest = placement.batched, placement.rest
        shardings = {"in_shardings": rest, "out_shardings": rest}
        place = partial(to_devices, sharding=rest)

    def key_of(seed, number):
        # The number 0 is folded in too. Otherwise the first keys that are split from the key of
        # number 0 would be the keys of the other numbers.
        key = jax.random.fold_in(jax.random.key(seed), EVALUATION)
        return jax.random.fold_in(key, number)

    def act(actor, key, memory, observations):
        memory, distribution = policy(actor, memory, observations)
        return memory, distribution.sample(key) if stochastic else distribution.mode()

    @partial(jax.jit, **shardings)
    @batched
    def on_device(actor: Actor, seed: Array, number: Array) -> Played:
        key, start = key_of(seed, number), carry(num_episodes)
        return evaluate(env, partial(act, actor), key, num_episodes, max_steps, start)

    @jax.jit
    def given(actor, key, memory, observations, first):
        memory, actions = act(actor, key, restarted(carry, first, memory), observations)
        return memory, jax.vmap(partial(to_environment_action, env.action))(actions)

    def on_host(actor, seeds, number, tell):
        played = []
        for index, seed in enumerate(seeds):
            of_seed = jax.tree.map(lambda x, i=index: x[i], actor)
            episode_seeds = (EVALUATION, seed, *((number,) if number else ()))
            say = tell and (lambda words, seed=seed: tell(f"seed {seed}, {words}"))
            played.append(
                evaluate_on_host(
                    env,
                    partial(given, of_seed),
                    key_of(np.uint32(seed), number),
                    episode_seeds,
                    num_episodes,
                    max_steps,
                    num_envs,
                    say,
                    carry,
                )
            )
        return jax.tree.map(lambda *xs: np.stack(xs), *played)

    def evaluation(
        actor: Actor,
        seeds: Sequence[int],
        number: int = 0,
        tell: Callable[[str], None] | None = None,
    ) -> Played:
        if env.open is not None:
            return on_host(actor, seeds, number, tell)
        numbers = np.full(len(seeds), number, np.uint32)
        with shortage_named():
            return to_host(on_device(*place((actor, np.asarray(seeds, np.uint32), numbers))))

    return evaluation


def require_finite_returns(
    env: Environment,
    seeds: Sequence[int],
    returns: np.ndarray,
    costs: np.ndarray | tuple[()] = (),
) -> None:
    """Raises an EnvironmentFailure that names the seeds whose returns or costs are not finite.

    Args:
        env: the environment.
        seeds: the seeds.
        returns: the returns of all episodes, `[num_seeds, E]`.
        costs: the costs of all episodes, `[num_seeds, E, K]`, or `()`.
    """
    broken = ~np.isfinite(returns).all(axis=1)
    if env.costs:
        broken |= ~np.isfinite(costs).all(axis=(1, 2))
    if broken.any():
        names = ", ".join(str(seed) for seed, x in zip(seeds, broken, strict=True) if x)
        raise EnvironmentFailure(
            f"Environment {env.name} returned numbers that are not finite in the evaluation of the "
            f"trained policy of seed{'s' if broken.sum() > 1 else ''} {names}."
        )


def evaluate_on_host(
    env: Environment,
    act: Callable[[PRNGKeyArray, Any, Any, Any], tuple[Any, Any]],
    key: PRNGKeyArray,
    seeds: tuple[int, ...],
    num_episodes: int,
    max_steps: int | None,
    num_envs: int | None,
    tell: Callable[[str], None] | None,
    carry: Callable[[int], Any],
) -> Played:
    """Does the same as `evaluate`, for an environment that runs on the host.

    After the end of an episode, a copy of the environment starts the next one. The first E episodes
    that are started count, also the long ones, so short episodes are not over-represented. An
    episode that ends with numbers that are not finite is replaced by another one.

    Args:
        env: the environment.
        act: `(key, carry, observations [B, ...], first [B]) -> (carry, actions [B, ...])`. The
            actions have the form that the environment takes. `first` marks starts of episodes.
        key: the random key for actions.
        seeds: decide the episodes.
        num_episodes: E.
        max_steps: maximum number of steps of an episode; None for the time limit, or `HOST_STEPS`
            if there is none.
        num_envs: maximum number of copies; None for E.
        tell: is called with messages about the progress.
        carry: `num_envs -> carry`, the memory of the policy.

    Raises:
        EnvironmentFailure: if the environment fails, or returns numbers that are not finite.
    """
    bound = evaluation_bound(env, max_steps)
    own_limit = env.time_limit
    env = env._replace(time_limit=bound)  # the time limit also ends episodes that are cut
    num_copies = min(num_episodes, num_envs or num_episodes)
    with failures_named(env):
        opened = env.open(seeds, num_copies)
    returns, cut = np.zeros(num_episodes, np.float32), np.zeros(num_episodes, bool)
    costs = np.zeros((num_episodes, len(env.costs)), np.float32) if env.costs else ()
    # The number of the episode that each copy plays. Episodes from number E on do not count.
    number = np.arange(num_copies)
    step, num_broken, told, memory = 0, 0, time.monotonic(), carry(num_copies)
    with closing(opened) as pool:
        episodes = start_host_episodes(env, pool, num_copies)
        while (number < num_episodes).any():
            memory, actions = act(
                jax.random.fold_in(key, step), memory, episodes.observation, episodes.first
            )
            episodes, transition = advance_host_episodes(env, pool, episodes, actions)
            step += 1
            num_broken += transition.broken.sum()
            if num_broken > num_episodes:
                raise NotFinite(
                    f"Environment {env.name} ended {num_broken} episodes of an evaluation with "
                    "numbers that are not finite, or absurdly large."
                )
            for copy in np.flatnonzero(transition.done & ~transition.broken):
                if number[copy] < num_episodes:
                    at_bound = bound != own_limit and transition.length[copy] == bound
                    cut[number[copy]] = at_bound and not transition.terminated[copy]
                    returns[number[copy]] = transition.total_reward[copy]
                    if env.costs:
                        costs[number[copy]] = transition.total_costs[copy]
                number[copy] = max(number) + 1
            if tell and time.monotonic() - told > SECONDS:
                ended = max(number) + 1 - num_copies
                tell(f"{ended:,} of {num_episodes:,} episodes ended, step {step:,}")
                told = time.monotonic()
    if num_broken:
        print(
            f"warning: {num_broken} evaluation episodes of {env.name} ended with numbers that are "
            "not finite, or absurdly large. Other episodes were played instead.",
            file=sys.stderr,
        )
    return Played(returns, cut, costs)
