"""The vine scheme tries several actions in the same state and compares the returns that follow.

The environment is restarted from stored states (Schulman et al. 2015, arXiv:1502.05477, section
5.2). From each state, a short branch runs for each of several actions. The state of an environment
is a pytree, so a restart is only another call of `step`.
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
    """Returns the first actions of the branches, and the log-probabilities of the draws.

    Discrete actions are drawn uniformly and without repetition, unless the observations contain a
    mask of legal actions. So with as many branches as actions, each action is tried once. In all
    other cases, the actions are independent draws from the policy.

    Args:
        key: consumed by the draws.
        env: the environment.
        distribution: the policy at N states.
        num_branches: K, at most the number of discrete actions.

    Examples:
        >>> env = trpo_jax.make_env("CartPole-v1")
        >>> policy = trpo_jax.Categorical(jnp.zeros((3, 2)))  # at N = 3 states
        >>> actions, log_probs = draw_actions(jax.random.key(0), env, policy, num_branches=2)
        >>> jnp.sort(actions, axis=1)
        Array([[0, 1],
               [0, 1],
               [0, 1]], dtype=int32)
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
    """Returns the discounted return of one short rollout without resets.

    Q(s, a) = sum_{t < L} gamma^t r_t + gamma^L V(s_L). L is `num_steps`, or the number of steps to
    the end of the episode if that is smaller. If the episode terminated, V counts as 0. Branches
    with the same key have the same noise in the environment and in all actions but the first.

    Args:
        env: the environment.
        act: `(key, observation) -> action`, for all steps but the first.
        value: `observation -> V`.
        key: consumed by actions and steps.
        episode: the episode at the state where the branch starts.
        action: the first action of the branch.
        num_steps: largest number of steps of the branch.
        gamma: discount, in [0, 1].

    Examples:
        >>> from trpo_jax.envs.episodes import start_episode
        >>> env = trpo_jax.make_env("CartPole-v1")  # each step has the reward 1
        >>> left, right = jnp.array(0), jnp.array(1)
        >>> branch_return(
        ...     env,
        ...     act=lambda key, observation: left,
        ...     value=lambda observation: jnp.array(0.0),
        ...     key=jax.random.key(0),
        ...     episode=start_episode(env, jax.random.key(1)),
        ...     action=right,
        ...     num_steps=3,
        ...     gamma=0.5,
        ... )
        Array(1.75, dtype=float32)
    """

    def body(carry, t):
        episode, observation, action, total, discount, live = carry
        step_key, act_key = jax.random.split(jax.random.fold_in(key, t))
        episode, step = step_episode(env, step_key, episode, action)
        total += jnp.where(live, discount * step.reward, 0.0)
        next_discount = jnp.where(step.terminated, 0.0, gamma * discount)
        discount = jnp.where(live, next_discount, discount)
        # The steps after the end of the episode run too, but nothing uses them.
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
    """Returns Q(s, a_k) - mean_j Q(s, a_j), or exactly 0 if that is only a rounding error.

    The self-normalised loss does not change if the same number is added to all returns of a state.
    So the mean of each state is subtracted. Otherwise a large mean could hide the differences.

    Examples:
        >>> differences(jnp.array([[3.0, 4.0, 5.0], [7.0, 7.0, 7.0]]))
        Array([[-1.,  0.,  1.],
               [ 0.,  0.,  0.]], dtype=float32)
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

    This is equation 16 of the paper. The gradient at state n is
    sum_k (grad w_k) (Q_k - L_n) / sum_k w_k, so the loss L_n of the state acts as a baseline. If
    each discrete action was tried once, the weights sum to a constant, and L is the loss over all
    actions, sum_a new(a|s) Q(s, a) (equation 15).

    Args:
        actions: K actions at each of N states.
        log_probs: log q(a_k|s) of each action.
        returns: Q_k of each action.
        entropy_coef: weight of the mean entropy of the new policy.

    Examples:
        >>> actions = jnp.array([[0, 1]])  # both actions of one state
        >>> log_probs = jnp.log(jnp.array([[0.5, 0.5]]))
        >>> surrogate = self_normalized_surrogate(actions, log_probs, jnp.array([[4.0, 8.0]]))
        >>> new = trpo_jax.Categorical(jnp.log(jnp.array([[0.25, 0.75]])))
        >>> print(f"{surrogate(new, new):.2f}")  # 0.25 * 4 + 0.75 * 8
        7.00
    """

    def surrogate(new: Distribution, old: Distribution) -> Float[Array, ""]:
        new_log_probs = jax.vmap(new.log_prob, in_axes=1, out_axes=1)(actions)
        weights = jax.nn.softmax(new_log_probs - log_probs, axis=1)
        return jnp.mean(jnp.sum(weights * returns, axis=1) + entropy_coef * new.entropy())

    return surrogate
