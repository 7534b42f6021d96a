"""Q-Prop (Gu et al. 2017, arXiv:1611.02247): TRPO, with an off-policy critic as a control variate.

Q(s, a) is fitted to all that is remembered, as in DDPG, and takes out of the sampled gradient what
it can predict (`trpo_jax.control_variates`). The batch is remembered before Q is fitted, as in the
paper's algorithm 1, and eta may depend on the action: either is a bias, and either is small.
"""

from collections.abc import Callable
from typing import NamedTuple, no_type_check

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Num, PRNGKeyArray, PyTree

from trpo_jax.advantages import standardize
from trpo_jax.algorithms import fields, on_policy
from trpo_jax.algorithms.base import Algorithm, observe
from trpo_jax.algorithms.groups import (
    Exploration,
    OnPolicy,
    TrustRegion,
    kl_radius,
    line_search_options,
    natural_gradient_options,
    require_continuous,
    validate,
)
from trpo_jax.algorithms.on_policy import TrainState
from trpo_jax.algorithms.trpo import fisher_metric
from trpo_jax.control_variates import control_variate, control_weights, controlled_surrogate
from trpo_jax.critics import CriticState, fit_with_target, init_critic
from trpo_jax.envs.base import Environment
from trpo_jax.errors import ConfigurationError
from trpo_jax.networks import Network, make_action_critic
from trpo_jax.replay import Replay, add_rows, init_replay, sample_rows
from trpo_jax.trust_region import trust_region_step


@no_type_check  # `make` checks the values, and leaves may be arrays
@struct.dataclass
class Config(TrustRegion, Exploration, OnPolicy):
    """Hyperparameters. Integers, names and booleans are static; every real number is a leaf."""

    eta: str = fields.choice(
        "conservative",
        "how far Q is trusted: where its sign is right, with its sign corrected, or everywhere",
        ("conservative", "aggressive", "standard"),
    )
    common_scale: bool = fields.flag(
        True, "divide both parts of the gradient alike; else only the sampled one: biased"
    )
    replay_size: int = fields.integer(100_000, "environment steps remembered, at least a batch", 1)
    q_lr: float = fields.real(1e-3, "step size of Adam for Q", 0.0)
    q_tau: float = fields.real(5e-3, "share of Q that moves into its target at each step", 0.0, 1.0)
    q_minibatch: int = fields.integer(64, "remembered steps in one step of Adam for Q", 1)
    q_updates: int = fields.integer(
        0, "steps of Adam for Q in one update; 0 for one per environment step", 0
    )


class Experience(NamedTuple):
    """What is remembered of environment steps, as the environment gave it; leading axes `[*B]`."""

    observation: Num[Array, "..."]
    action: Float[Array, "*B D"]
    reward: Float[Array, "*B"]
    terminated: Bool[Array, "*B"]
    next_observation: Num[Array, "..."]


class Memory(NamedTuple):
    """What is kept from update to update: past steps, Q and its optimiser, and Q's target."""

    replay: Replay
    critic: CriticState
    target_params: PyTree[Array]


def make_q_fit(
    config: Config, policy: Network, q_network: Network
) -> Callable[[PRNGKeyArray, TrainState, Memory], tuple[Memory, Float[Array, ""]]]:
    """Returns `(key, state, memory) -> (memory, loss)`, which fits Q and moves its target after it.

    The target of Q(s, a) is r + gamma Q'(s', mu(s')), with Q' the target network and mu the mean of
    the policy, as in DDPG (Lillicrap et al. 2016); rewards are scaled as those of the critic are.
    """

    def fit(key, state, memory):
        reward_scale = on_policy.scale_of_rewards(config, state)

        def loss(params, target_params, rows):
            observations, following = (
                observe(state.actor.observation_statistics, x, config.normalize_observations)
                for x in (rows.observation, rows.next_observation)
            )
            actions = policy.apply(state.actor.policy_params, following).mode()
            next_values = q_network.apply(target_params, following, actions)
            # Truncation does not stop the target: there was a future, only nobody saw it.
            continuation = jnp.where(rows.terminated, 0.0, next_values)
            targets = rows.reward / reward_scale + config.gamma * continuation
            return jnp.mean((q_network.apply(params, observations, rows.action) - targets) ** 2)

        critic, target_params, q_loss = fit_with_target(
            key,
            lambda key: sample_rows(key, memory.replay, config.q_minibatch),
            loss,
            memory.critic,
            memory.target_params,
            learning_rate=config.q_lr,
            tau=config.q_tau,
            steps=config.q_updates or config.num_envs * config.num_steps,
        )
        return Memory(memory.replay, critic, target_params), q_loss

    return fit


def make(env: Environment, config: Config | None = None) -> Algorithm:
    """Returns Q-Prop on an environment with continuous actions; see `trpo.make`."""
    config = Config() if config is None else config
    require_continuous(env, "qprop")
    validate(env, config)
    batch_size = config.num_envs * config.num_steps
    if config.replay_size < batch_size:
        raise ConfigurationError(
            f"replay_size = {config.replay_size} does not hold the batch of num_envs * num_steps = "
            f"{config.num_envs} * {config.num_steps} = {batch_size}. Choose at least that."
        )
    behavior, policy = on_policy.make_behavior(env, config), on_policy.policy_network(env, config)
    q_network = make_action_critic(
        env.observation, env.action, hidden_sizes=config.hidden_sizes, activation=config.activation
    )

    fit = make_q_fit(config, policy, q_network)

    def policy_step(key, state, trajectory, batch):
        params = state.actor.policy_params
        rows = Experience(*(getattr(trajectory, name) for name in Experience._fields))
        rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows)
        memory = state.memory._replace(replay=add_rows(state.memory.replay, rows))
        memory, q_loss = fit(key, state, memory)
        control = control_variate(
            lambda actions: q_network.apply(memory.critic.params, batch.observations, actions),
            behavior.apply(params, batch).mode(),
            batch.actions,
        )
        eta = control_weights(config.eta, batch.advantages, control.advantages)
        surrogate = controlled_surrogate(
            batch.actions,
            batch.advantages,
            control,
            eta,
            config.entropy_coef,
            common_scale=config.common_scale,
        )
        params, info = trust_region_step(
            params,
            lambda p: behavior.apply(p, batch),
            surrogate,
            **fisher_metric(env, config, params, batch),
            max_kl=kl_radius(env, config, state.num_updates, batch_size),
            **natural_gradient_options(config),
            **line_search_options(config),
        )
        correlation = jnp.mean(standardize(batch.advantages) * standardize(control.advantages))
        metrics = {
            "q_loss": q_loss,
            "control_variate_correlation": correlation,
            "eta_mean": jnp.mean(eta),
        }
        return params, memory, info._asdict() | metrics

    algorithm = on_policy.make(env, config, policy_step)

    def init(key: PRNGKeyArray) -> TrainState:
        state = algorithm.init(key)
        # The updates count from 0, and take the keys from there on.
        params = q_network.init(jax.random.fold_in(state.key, state.num_updates - 1))
        row = Experience(
            observation=jax.ShapeDtypeStruct(*env.observation),
            action=jax.ShapeDtypeStruct((env.action.size,), jnp.float32),
            reward=jax.ShapeDtypeStruct((), jnp.float32),
            terminated=jax.ShapeDtypeStruct((), bool),
            next_observation=jax.ShapeDtypeStruct(*env.observation),
        )
        replay = init_replay(row, config.replay_size)
        return state._replace(memory=Memory(replay, init_critic(params), params))

    return algorithm._replace(init=init)
