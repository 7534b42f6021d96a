"""The public names, for static type checkers, which do not see what is imported lazily."""

from trpo_jax.agent import Agent, Policy, make_agent, memoryless, policy_of
from trpo_jax.algorithms import (
    cpo,
    happo,
    hatrpo,
    mappo,
    npg,
    pcpo,
    ppo,
    ppo_lag,
    qprop,
    trpo,
    trpo_ensemble,
    trpo_held_out,
    trpo_lag,
    trpo_pid,
    trpo_vine,
    ua_trpo,
    vpg,
)
from trpo_jax.algorithms.base import Algorithm
from trpo_jax.critics import Critic, adam_critic, normalized, trust_region_critic
from trpo_jax.distributions import Categorical, DiagGaussian, Product, mask_logits
from trpo_jax.envs import make as make_env
from trpo_jax.envs.base import Environment, StepResult
from trpo_jax.envs.costs import with_cost
from trpo_jax.envs.specs import Agents, ArraySpec, Box, Discrete, MultiDiscrete
from trpo_jax.kronecker import kronecker_solver
from trpo_jax.networks import Network, from_linen, from_nnx
from trpo_jax.records.citations import citation
from trpo_jax.records.export import export
from trpo_jax.records.policies import load_policy
from trpo_jax.records.pretrained import pretrained
from trpo_jax.recurrent import Cell, RecurrentNetwork, from_linen_cell, gru, lstm, recurrent_network
from trpo_jax.running.defaults import defaults
from trpo_jax.running.results import Run
from trpo_jax.running.sweep import Sweep, sweep
from trpo_jax.running.train import train
from trpo_jax.sample_space import sample_space_solver
from trpo_jax.teams import make_team
from trpo_jax.transform import levenberg_marquardt, natural_gradient, unmasked

__version__: str

__all__ = [
    "Agent",
    "Agents",
    "Algorithm",
    "ArraySpec",
    "Box",
    "Categorical",
    "Cell",
    "Critic",
    "DiagGaussian",
    "Discrete",
    "Environment",
    "MultiDiscrete",
    "Network",
    "Policy",
    "Product",
    "RecurrentNetwork",
    "Run",
    "StepResult",
    "Sweep",
    "adam_critic",
    "citation",
    "cpo",
    "defaults",
    "export",
    "from_linen",
    "from_linen_cell",
    "from_nnx",
    "gru",
    "happo",
    "hatrpo",
    "kronecker_solver",
    "levenberg_marquardt",
    "load_policy",
    "lstm",
    "make_agent",
    "make_env",
    "make_team",
    "mappo",
    "mask_logits",
    "memoryless",
    "natural_gradient",
    "normalized",
    "npg",
    "pcpo",
    "policy_of",
    "ppo",
    "ppo_lag",
    "pretrained",
    "qprop",
    "recurrent_network",
    "sample_space_solver",
    "sweep",
    "train",
    "trpo",
    "trpo_ensemble",
    "trpo_held_out",
    "trpo_lag",
    "trpo_pid",
    "trpo_vine",
    "trust_region_critic",
    "ua_trpo",
    "unmasked",
    "vpg",
    "with_cost",
]
