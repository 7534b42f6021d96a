"""Branches: what different actions lead to in the same state, and a loss that compares them.

The vine scheme (Schulman et al. 2015, arXiv:1502.05477, section 5.2) restarts the environment from
stored states and runs a short branch from each of several actions. An environment's state is a
pytree, so a restart is one more call of `step`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num, PRNGKeyArray, PyTree

from trpo_jax.distributions import Distribution
from trpo_jax.envs.base import Environment
from trpo_jax.envs.episodes import Episode, step_episode
from trpo_jax.envs.specs import Discrete, split_mask
from trpo_jax.trust_region import Surrogate


def draw_actions(
    key: PRNGKeyArray, env: Environment, distribution: Distribution, num_branches: int
) -> tuple[PyTree[Num[Array, "N K ..."]], Float[Array, "N K"]]:
    """Returns the first actions of the branches and the log-probabilities they were drawn with.

    Uniform and without repetition for discrete actions that are all legal, so that with as many
    branches as actions each is tried once; otherwise independent draws from the policy.

    Args:
        key: consumed by the draws.
        env: the environment.
        distribution: the policy at N states.
        num_branches: K, at most the number of discrete actions.
    """
    if not isinstance(env.action, Discrete) or split_mask(env.observation)[1] is not None:
        keys = jax.random.split(key, num_branches)
        actions = jax.vmap(distribution.sample, out_axes=1)(keys)
        return actions, jax.vmap(distribution.log_prob, in_axes=1, out_axes=1)(actions)
    num_states, num_actions = distribution.entropy().shape[0], env.action.num_actions
    permutations = jax.vmap(lambda k: jax.random.permutation(k, num_actions))
    actions = permutations(jax.random.split(key, num_states))[:, :num_branches]
    return actions, jnp.full(actions.shape, -jnp.log(num_actions))


def branch_return(
    env: Environment,
    act: Callable[[PRNGKeyArray, Any], Any],
    value: Callable[[Any], Float[Array, ""]],
    key: PRNGKeyArray,
    episode: Episode,
    action: Any,
    num_steps: int,
    gamma: Float[Array, ""] | float,
) -> Float[Array, ""]:
    """Returns the discounted return of one short rollout, without resets.

    Q(s, a) = sum_{t < L} gamma^t r_t + gamma^L V(s_L), where L is `num_steps` or, if that is less,
    the number of steps to the end of the episode, and V counts unless the episode terminated.
    Branches with one key share the noise of the environment and of all actions but the first.

    Args:
        env: the environment.
        act: `(key, observation) -> action`, for all steps but the first.
        value: `observation -> V`.
        key: consumed by actions and steps.
        episode: where the branch starts.
        action: its first action.
        num_steps: its length at the most.
        gamma: discount, in [0, 1].
    """

    def body(carry, t):
        episode, observation, action, total, discount, live = carry
        step_key, act_key = jax.random.split(jax.random.fold_in(key, t))
        episode, step = step_episode(env, step_key, episode, action)
        total += jnp.where(live, discount * step.reward, 0.0)
        next_discount = jnp.where(step.terminated, 0.0, gamma * discount)
        discount = jnp.where(live, next_discount, discount)
        # What follows the end is run but not looked at.
        following = step.next_observation
        observation = jax.tree.map(
            lambda new, old: jnp.where(live, new, old), following, observation
        )
        live &= ~step.done
        action = act(act_key, observation)
        return (episode, observation, action, total, discount, live), None

    start = (jnp.zeros(()), jnp.ones(()), jnp.ones((), bool))
    carry = (episode._replace(first=jnp.zeros((), bool)), episode.observation, action, *start)
    (_, observation, _, total, discount, _), _ = jax.lax.scan(body, carry, jnp.arange(num_steps))
    return total + discount * value(observation)


def differences(returns: Float[Array, "N K"]) -> Float[Array, "N K"]:
    """Returns Q(s, a_k) - mean_j Q(s, a_j), exactly 0 where that is less than rounding.

    The self-normalised loss does not change when the returns of one state are shifted together, so
    what they have in common is taken out before its size hides the rest.
    """
    centred = returns - jnp.mean(returns, axis=1, keepdims=True)
    rounding = 10 * jnp.finfo(returns.dtype).eps * jnp.max(jnp.abs(returns))
    return jnp.where(jnp.abs(centred) > rounding, centred, 0.0)


def self_normalized_surrogate(
    actions: PyTree[Num[Array, "N K ..."]],
    log_probs: Float[Array, "N K"],
    returns: Float[Array, "N K"],
    entropy_coef: Float[Array, ""] | float = 0.0,
) -> Surrogate:
    """Returns L(new) = mean_n sum_k w_k Q_k / sum_k w_k with w_k = new(a_k|s) / q(a_k|s).

    Equation 16. Its gradient has a baseline for each state built in: that of w_k / sum_j w_j times
    Q_k - L_n. Where each discrete action was tried once, the weights sum to a constant and it is
    the loss over all actions, sum_a new(a|s) Q(s, a) (equation 15).

    Args:
        actions: K actions at each of N states.
        log_probs: log q of each.
        returns: Q of each.
        entropy_coef: weight of the new policy's mean entropy.
    """

    def surrogate(new: Distribution, old: Distribution) -> Float[Array, ""]:
        new_log_probs = jax.vmap(new.log_prob, in_axes=1, out_axes=1)(actions)
        weights = jax.nn.softmax(new_log_probs - log_probs, axis=1)
        return jnp.mean(jnp.sum(weights * returns, axis=1) + entropy_coef * new.entropy())

    return surrogate
