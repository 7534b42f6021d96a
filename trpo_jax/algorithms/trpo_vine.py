"""TRPO with the vine scheme (Schulman et al. 2015, arXiv:1502.05477, section 5.2 and figure 1).

One trajectory says of each state what one action led to. The vine restarts the environment from N
states of it, the rollout set, and runs a short branch from each of K actions: differences between
the actions of one state are measured, where the single path has to guess them from a critic. The
branches of a state share the random numbers of environment and policy, so that what differs between
them is the action.

The trunk's rewards reach the policy only through the critic, and through it only if branches are
bootstrapped. All steps of the simulator are counted, also those it runs after a branch has ended.
"""

from typing import NamedTuple, no_type_check

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int, Num

from trpo_jax import exploration
from trpo_jax.advantages import standardize
from trpo_jax.algorithms import fields, on_policy
from trpo_jax.algorithms.base import Algorithm, observe
from trpo_jax.algorithms.groups import (
    OnPolicy,
    TrustRegion,
    kl_radius,
    line_search_options,
    natural_gradient_options,
    validate,
)
from trpo_jax.algorithms.trpo import fisher_metric
from trpo_jax.envs.base import Discrete, Environment
from trpo_jax.errors import ConfigurationError
from trpo_jax.trust_region import trust_region_step
from trpo_jax.vine import branch_return, differences, draw_actions, self_normalized_surrogate


@no_type_check  # `make` checks the values, and leaves may be arrays
@struct.dataclass
class Config(TrustRegion, OnPolicy):
    """Hyperparameters. Integers, names and booleans are static; every real number is a leaf."""

    num_states: int = fields.integer(64, "states of the trajectory that branches start from", 1)
    num_branches: int = fields.integer(
        4, "actions tried in each of these states, at least 2; no more than there are", 1
    )
    branch_steps: int = fields.integer(
        10, "steps of each branch; 50 to 100 in the paper, which does not bootstrap", 1
    )
    branch_bootstrap: bool = fields.flag(
        True, "add the critic's value where a branch stops short of termination; not in the paper"
    )
    fisher_subsample: int = fields.integer(
        1, "keep every k-th of the num_states states in Fisher-vector products", 1
    )


class Branches(NamedTuple):
    """What the branches of N states with K actions each found.

    Attributes:
        time: row of each state in the trajectory.
        env: its column.
        actions: the first actions, as the policy chooses them.
        log_probs: their log-probabilities under what they were drawn from.
        returns: discounted return of each branch, in the environment's units.
    """

    time: Int[Array, " N"]
    env: Int[Array, " N"]
    actions: Num[Array, "N K ..."]
    log_probs: Float[Array, "N K"]
    returns: Float[Array, "N K"]


def make(env: Environment, config: Config | None = None) -> Algorithm:
    """Returns TRPO with the vine scheme on an environment; see `trpo.make`.

    The trajectory's `context` is a `Branches`.
    """
    config = Config() if config is None else config
    validate(env, config)
    _validate_branches(env, config)
    network = on_policy.policy_network(env, config)
    critic = on_policy.make_value_function(env, config)
    num_rows, num_branches = config.num_envs * config.num_steps, config.num_branches
    if isinstance(env.action, Discrete):
        num_branches = min(num_branches, env.action.num_actions)
    steps_per_update = num_rows + config.num_states * num_branches * config.branch_steps

    def collect(state):
        collected, trajectory = base.collect(state)
        rows_key, actions_key, branch_key = jax.random.split(on_policy.update_keys(state).policy, 3)
        rows = jax.random.choice(rows_key, num_rows, (config.num_states,), replace=False)
        time, column = jnp.divmod(rows, config.num_envs)
        episodes = jax.tree.map(lambda x: x[time, column], trajectory.context)
        actions, log_probs = draw_actions(
            actions_key, env, base.policy(state.actor, episodes.observation), num_branches
        )
        scale = on_policy.scale_of_rewards(config, state)

        def act(key, observation):
            return base.policy(state.actor, observation).sample(key)

        def value(observation):
            if not config.branch_bootstrap:
                return jnp.zeros(())
            statistics = state.actor.observation_statistics
            seen = observe(statistics, observation, config.normalize_observations)
            return scale * critic.values(state.critic.params, seen)

        def branch(key, episode, action):
            return branch_return(
                env, act, value, key, episode, action, config.branch_steps, config.gamma
            )

        # One key for all branches of a state: common random numbers.
        of_one_state = jax.vmap(branch, in_axes=(None, None, 0))
        keys = jax.random.split(branch_key, config.num_states)
        returns = jax.vmap(of_one_state)(keys, episodes, actions)
        branches = Branches(time, column, actions, log_probs, returns)
        return collected, trajectory._replace(context=branches)

    def policy_step(key, state, trajectory, batch):
        branches, params = batch.context, state.actor.policy_params
        restarted = batch._replace(context=())
        restarted = jax.tree.map(lambda x: x[branches.time, branches.env], restarted)
        params, info = trust_region_step(
            params,
            lambda p: network.apply(p, restarted.observations),
            self_normalized_surrogate(
                branches.actions,
                branches.log_probs,
                standardize(differences(branches.returns)),
                config.entropy_coef,
            ),
            **fisher_metric(env, config, params, restarted),
            max_kl=kl_radius(env, config, state.num_updates, steps_per_update),
            **natural_gradient_options(config),
            **line_search_options(config),
        )
        spread = jnp.mean(jnp.std(branches.returns, axis=1))
        return params, state.memory, {**info._asdict(), "branch_return_std": spread}

    base = on_policy.make(env, config, policy_step, explore=_recording())
    return base._replace(
        collect=collect,
        update=lambda state: base.learn(*collect(state)),
        steps_per_update=steps_per_update,
    )


def _recording() -> exploration.Exploration:
    """Returns independent draws that keep the running episode of each step as their context."""
    white = exploration.white()

    def act(key, distribution, memory, episodes):
        actions, _, memory = white.act(key, distribution, memory, episodes)
        return actions, episodes, memory

    return white._replace(act=act)


def _validate_branches(env: Environment, config: Config) -> None:
    num_rows = config.num_envs * config.num_steps
    if not env.restartable:
        raise ConfigurationError(
            f"trpo_vine restarts the environment from stored states, and {env.name} cannot be "
            "restarted. Choose an environment that can, or the single path of trpo."
        )
    if config.num_branches < 2:
        raise ConfigurationError(
            f"num_branches = {config.num_branches} compares no actions: the loss of a state is a "
            "weighted mean over its branches, which for one branch is constant. Choose at least 2."
        )
    if config.num_states > num_rows:
        raise ConfigurationError(
            f"num_states = {config.num_states} is more than the trajectory holds: num_envs * "
            f"num_steps = {config.num_envs} * {config.num_steps} = {num_rows}. Choose at most that."
        )
    if config.fisher_subsample > config.num_states:
        raise ConfigurationError(
            f"fisher_subsample = {config.fisher_subsample} keeps every k-th of only num_states = "
            f"{config.num_states} states. Choose at most num_states."
        )
