"""Trust-region policy optimisation in JAX.

The rooms, in the order in which an update goes through them: `envs`, `rollout`, `advantages`,
`distributions`, `networks`, `fisher`, `solvers`, `line_search`, `trust_region`, `critic`,
`normalization`. `algorithms` composes them and `training` runs the compositions.
"""

from trpo_jax.records.policies import load_policy

__version__ = "0.2.0"

__all__ = ["load_policy"]
