"""Q-Prop (Gu et al. 2017, arXiv:1611.02247): TRPO, with an off-policy critic as a control variate.

Q(s, a) is fitted to a replay buffer, as in DDPG. It predicts a part of the sampled gradient. The
prediction is subtracted from the samples and its exact mean is added, which lowers the variance
(`trpo_jax.control_variates`). Two details add a small bias. The batch enters the replay buffer
before Q is fitted, as in algorithm 1 of the paper. And eta may depend on the action.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from trpo_jax.advantages import Spread, init_spread, standardize, update_spread
from trpo_jax.agent import Agent
from trpo_jax.algorithms import configs, on_policy
from trpo_jax.algorithms.base import Algorithm
from trpo_jax.algorithms.checks import prepare, require_continuous, require_no_memory
from trpo_jax.algorithms.natural_gradient import kl_radius, make_solve, require_solver, step_options
from trpo_jax.algorithms.on_policy import StepInput
from trpo_jax.control_variates import CONTROL_WEIGHTS, control_variate, controlled_surrogate
from trpo_jax.critics import CriticState, fit_with_target, init_critic
from trpo_jax.envs.base import Environment
from trpo_jax.errors import ConfigurationError
from trpo_jax.networks import Network, make_action_critic, over_two_axes
from trpo_jax.observing import observe
from trpo_jax.replay import Replay, add_rows, init_replay, sample_rows
from trpo_jax.trust_region import trust_region_step

Config = configs.QProp


class Experience(NamedTuple):
    """Rows of the replay buffer, in the units of the environment; leading axes `[*B]`."""

    observation: Any
    action: Float[Array, "*B D"]
    reward: Float[Array, "*B"]
    terminated: Bool[Array, "*B"]
    next_observation: Any


class QState(NamedTuple):
    """State that the step keeps between updates: the replay, Q, its target and the spread of A."""

    replay: Replay
    critic: CriticState
    target_params: PyTree[Array]
    spread: Spread


def make_q_fit(
    env: Environment, config: Config, agent: Agent, q_network: Network
) -> Callable[[PRNGKeyArray, StepInput, QState], tuple[QState, Float[Array, ""]]]:
    """Returns `(key, step_input, q_state) -> (q_state, loss)`, which fits Q and its target network.

    Q(s, a) is fitted to r + gamma Q'(s', mu(s')), where Q' is the target network and mu is the mean
    of the policy, as in DDPG (Lillicrap et al. 2016). Rewards are scaled as for the critic.
    """

    def fit(key, step_input, q_state):
        actor = step_input.actor
        carry = agent.policy.carry(config.q_minibatch)

        def loss(params, target_params, rows):
            observations, following = (
                observe(
                    env.observation, actor.observation_statistics, x, config.normalize_observations
                )
                for x in (rows.observation, rows.next_observation)
            )
            actions = agent.step(actor.policy_params, carry, following)[1].mode()
            next_values = q_network.apply(target_params, following, actions)
            # Truncation does not stop the target: the episode had a future that nobody saw.
            continuation = jnp.where(rows.terminated, 0.0, next_values)
            targets = rows.reward / step_input.reward_scale + config.gamma * continuation
            return jnp.mean((q_network.apply(params, observations, rows.action) - targets) ** 2)

        critic, target_params, q_loss = fit_with_target(
            key,
            lambda key: sample_rows(key, q_state.replay, config.q_minibatch),
            loss,
            q_state.critic,
            q_state.target_params,
            learning_rate=config.q_lr,
            tau=config.q_tau,
            steps=config.q_updates or config.num_envs * config.num_steps,
        )
        return q_state._replace(critic=critic, target_params=target_params), q_loss

    return fit


def make(
    env: Environment, config: Config | None = None, *, agent: Agent | None = None
) -> Algorithm:
    """Returns Q-Prop on an environment with continuous actions; see `trpo.make`.

    Examples:
        >>> env = trpo_jax.make_env("Pendulum-v1")
        >>> config = trpo_jax.qprop.Config(replay_size=128, q_updates=4)
        >>> algorithm = trpo_jax.qprop.make(env, config.replace(num_envs=4, num_steps=16))
        >>> state, metrics = jax.jit(algorithm.update)(algorithm.init(jax.random.key(0)))
        >>> bool(metrics["q_loss"] > 0), bool(0 < metrics["eta_mean"] < 1)
        (True, True)
    """
    config, agent = prepare(env, config or Config(), agent)
    require_continuous(env, "qprop")
    require_solver(env, config, agent)
    require_no_memory(agent, "qprop fits Q to single steps of its replay")
    batch_size = config.num_envs * config.num_steps
    if config.replay_size < batch_size:
        raise ConfigurationError(
            f"replay_size = {config.replay_size} does not hold the batch of num_envs * num_steps = "
            f"{config.num_envs} * {config.num_steps} = {batch_size}. Choose at least {batch_size}."
        )
    q_network = make_action_critic(
        env.observation, env.action, hidden_sizes=config.hidden_sizes, activation=config.activation
    )
    q_values = over_two_axes(q_network.apply)
    fit = make_q_fit(env, config, agent, q_network)
    control_weights = CONTROL_WEIGHTS[config.eta]

    def init_step_state(key, policy_params):
        shown = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), env.observation)
        row = Experience(
            observation=shown,
            action=jax.ShapeDtypeStruct((env.action.size,), jnp.float32),
            reward=jax.ShapeDtypeStruct((), jnp.float32),
            terminated=jax.ShapeDtypeStruct((), bool),
            next_observation=shown,
        )
        params = q_network.init(key)
        replay = init_replay(row, config.replay_size)
        return QState(replay, init_critic(params), params, init_spread())

    def policy_step(key, step_input):
        fit_key, solve_key = jax.random.split(key)
        params, batch = step_input.actor.policy_params, step_input.batch
        rows = Experience(*(getattr(step_input.trajectory, name) for name in Experience._fields))
        rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows)
        replay = add_rows(step_input.step_state.replay, rows)
        deviation = step_input.reward_scale * jnp.std(batch.advantages)
        spread, strength = update_spread(
            step_input.step_state.spread, deviation, config.penalty_memory
        )
        kept = step_input.step_state._replace(replay=replay, spread=spread)
        q_state, q_loss = fit(fit_key, step_input, kept)
        control = control_variate(
            lambda actions: q_values(q_state.critic.params, batch.observations, actions),
            agent.distributions(params, batch).mode(),
            batch.actions,
        )
        eta = control_weights(batch.advantages, control.advantages)
        eta = jnp.where(step_input.signal, eta, 0.0)  # without a signal Q is only error
        surrogate = controlled_surrogate(
            batch.actions,
            batch.advantages,
            control,
            eta,
            config.entropy_coef,
            values=batch.values,
            common_scale=config.common_scale,
        )
        params, info = trust_region_step(
            params,
            lambda p: agent.distributions(p, batch),
            surrogate,
            make_solve(env, config, agent, solve_key, params, batch),
            max_kl=kl_radius(env, config, step_input.num_updates, batch_size),
            **step_options(env, config, strength),
        )
        advantages = standardize(batch.advantages, batch.values)
        metrics = {
            "advantage_strength": strength,
            "q_loss": q_loss,
            "control_variate_correlation": jnp.mean(advantages * standardize(control.advantages)),
            "eta_mean": jnp.mean(eta),
        }
        return params, q_state, info._asdict() | metrics

    return on_policy.make(
        env,
        config,
        agent=agent,
        policy_step=policy_step,
        init_step_state=init_step_state,
    )
