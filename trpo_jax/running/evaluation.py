"""Returns of a fixed policy over fresh episodes."""

from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num, PRNGKeyArray

from trpo_jax.algorithms.base import Actor
from trpo_jax.devices import Placement
from trpo_jax.distributions import Distribution
from trpo_jax.envs.base import Environment, to_environment_action
from trpo_jax.envs.episodes import step_episode
from trpo_jax.errors import EnvironmentFailure
from trpo_jax.host_rollout import advance_host_episodes, failures_named, start_host_episodes
from trpo_jax.processes import to_devices, to_host
from trpo_jax.rollout import start_episodes

EVALUATION = 0xE7A1  # sets the keys of evaluation apart
MAX_STEPS = 100_000  # bound on an episode in an environment without a time limit


def evaluate(
    env: Environment,
    act: Callable[[PRNGKeyArray, Num[Array, "E ..."]], Num[Array, "E ..."]],
    key: PRNGKeyArray,
    num_episodes: int,
) -> Float[Array, " E"]:
    """Returns the undiscounted returns of E = `num_episodes` fresh episodes.

    All episodes run side by side until the last has ended; each counts once, so that short
    episodes are not over-represented. Without a time limit one that has not ended after `MAX_STEPS`
    steps counts with what it has collected.

    Args:
        env: the environment.
        act: `(key, observations [E, ...]) -> actions [E, ...]`.
        key: consumed by resets, actions and steps.
        num_episodes: E.
    """
    reset_key, run_key = jax.random.split(key)
    step_all = jax.vmap(partial(step_episode, env))

    def unfinished(carry):
        step, _, finished, _ = carry
        return ~jnp.all(finished) & (step < (env.time_limit or MAX_STEPS))

    def body(carry):
        step, episodes, finished, returns = carry
        act_key, env_key = jax.random.split(jax.random.fold_in(run_key, step))
        actions = act(act_key, episodes.observation)
        env_keys = jax.random.split(env_key, num_episodes)
        episodes, transition = step_all(env_keys, episodes, actions)
        returns = jnp.where(finished, returns, transition.total_reward)
        return step + 1, episodes, finished | transition.done, returns

    start = (
        jnp.zeros((), jnp.int32),
        start_episodes(env, reset_key, num_episodes),
        jnp.zeros(num_episodes, bool),
        jnp.zeros(num_episodes, jnp.float32),
    )
    return jax.lax.while_loop(unfinished, body, start)[-1]


def make_evaluation(
    env: Environment,
    policy: Callable[[Actor, Num[Array, "E ..."]], Distribution],
    num_episodes: int,
    *,
    stochastic: bool = False,
    placement: Placement | None = None,
) -> Callable[..., np.ndarray]:
    """Returns the function that plays E = `num_episodes` fresh episodes with each seed's policy.

    It is `(actor, seeds, number=0) -> returns [num_seeds, E]`, undiscounted and on the host; the
    leading axis of the actor is `[num_seeds]`. Seed and number decide the episodes, by keys that
    training does not use; a run's last evaluation is number 0, one after update k number k. Of an
    environment on the device, returns may not be finite (see `require_finite_returns`).

    Args:
        env: the environment.
        policy: of the algorithm.
        num_episodes: E.
        stochastic: whether actions are drawn from the policy; else they are its mode.
        placement: which devices the seeds are split over; all are on the default one if None.
    """
    batched, shardings, place = jax.vmap, {}, lambda values: values
    if placement is not None:
        batched, rest = placement.batched, placement.rest
        shardings = {"in_shardings": rest, "out_shardings": rest}
        place = partial(to_devices, sharding=rest)

    def key_of(seed, number):
        # One level below EVALUATION for every number: the first keys that are split from the key
        # of number 0 would be those of other numbers.
        key = jax.random.fold_in(jax.random.key(seed), EVALUATION)
        return jax.random.fold_in(key, number)

    def act(actor, key, observations):
        distribution = policy(actor, observations)
        return distribution.sample(key) if stochastic else distribution.mode()

    @partial(jax.jit, **shardings)
    @batched
    def on_device(actor: Actor, seed: Array, number: Array) -> Float[Array, " E"]:
        return evaluate(env, partial(act, actor), key_of(seed, number), num_episodes)

    given = jax.jit(lambda *args: jax.vmap(partial(to_environment_action, env.action))(act(*args)))

    def on_host(actor: Actor, keys: Sequence[PRNGKeyArray], places: Sequence[tuple[int, ...]]):
        actors = [jax.tree.map(lambda x, i=i: x[i], actor) for i in range(len(keys))]
        return [
            evaluate_on_host(env, partial(given, actor), key, place, num_episodes)
            for actor, key, place in zip(actors, keys, places, strict=True)
        ]

    def evaluation(actor: Actor, seeds: Sequence[int], number: int = 0) -> np.ndarray:
        if env.open is None:
            numbers = np.full(len(seeds), number, np.uint32)
            return to_host(on_device(*place((actor, np.asarray(seeds, np.uint32), numbers))))
        keys = [key_of(np.uint32(seed), number) for seed in seeds]
        numbers = (number,) if number else ()
        return np.stack(on_host(actor, keys, [(EVALUATION, seed, *numbers) for seed in seeds]))

    return evaluation


def require_finite_returns(env: Environment, seeds: Sequence[int], returns: np.ndarray) -> None:
    """Raises an EnvironmentFailure that names the seeds whose returns `[num_seeds, E]` are not."""
    broken = ~np.isfinite(returns).all(axis=1)
    if broken.any():
        names = ", ".join(str(seed) for seed, x in zip(seeds, broken, strict=True) if x)
        raise EnvironmentFailure(
            f"Environment {env.name} returned numbers that are not finite to the trained "
            f"policy of seed {names}, in its evaluation."
        )


def evaluate_on_host(
    env: Environment,
    act: Callable[[PRNGKeyArray, Num[Array, "E ..."]], Num[Array, "E ..."]],
    key: PRNGKeyArray,
    seeds: tuple[int, ...],
    num_episodes: int,
) -> np.ndarray:
    """Does what `evaluate` does, for an environment that runs on the host.

    Args:
        env: the environment.
        act: `(key, observations [E, ...]) -> actions [E, ...]`, as the environment takes them.
        key: consumed by actions.
        seeds: set the episodes.
        num_episodes: E.

    Raises:
        EnvironmentFailure: if the environment fails, or returns numbers that are not finite.
    """
    with failures_named(env):
        opened = env.open(seeds, num_episodes)
    with closing(opened) as pool:
        episodes = start_host_episodes(env, pool, num_episodes)
        finished = np.zeros(num_episodes, bool)
        returns = np.zeros(num_episodes, np.float32)
        for step in range(env.time_limit or MAX_STEPS):
            actions = act(jax.random.fold_in(key, step), episodes.observation)
            episodes, transition = advance_host_episodes(env, pool, episodes, actions)
            returns = np.where(finished, returns, transition.total_reward)
            finished |= transition.done
            if finished.all():
                break
    return returns
