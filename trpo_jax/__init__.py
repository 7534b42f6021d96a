"""Trust-region policy optimisation in JAX.

Public names are imported at their first use, so `import trpo_jax` is fast.

An update uses these modules in this order: `envs`, `rollout`, `advantages`, `distributions`,
`networks`, `fisher`, `solvers`, `line_search`, `trust_region`, `constraints`, `critics`,
`normalization`. `algorithms` combines them, and `running` runs the algorithms. `records`,
`analysis` and `figures` store, evaluate and plot the results. `transform` is the same step for any
model and any loss.
"""

from importlib import import_module
from typing import Any

__version__ = "0.11.0"

_MODULES = {  # the module of each public name
    "trpo_jax.running.results": ("Run",),
    "trpo_jax.running.train": ("train",),
    "trpo_jax.running.sweep": ("Sweep", "sweep"),
    "trpo_jax.running.defaults": ("defaults",),
    "trpo_jax.records.citations": ("citation",),
    "trpo_jax.records.policies": ("load_policy",),
    "trpo_jax.records.export": ("export",),
    "trpo_jax.records.pretrained": ("pretrained",),
    "trpo_jax.agent": ("Agent", "Policy", "make_agent", "memoryless", "policy_of"),
    "trpo_jax.recurrent": (
        "Cell",
        "RecurrentNetwork",
        "from_linen_cell",
        "gru",
        "lstm",
        "recurrent_network",
    ),
    "trpo_jax.teams": ("make_team",),
    "trpo_jax.critics": ("Critic", "adam_critic", "normalized", "trust_region_critic"),
    "trpo_jax.transform": ("levenberg_marquardt", "natural_gradient", "unmasked"),
    "trpo_jax.kronecker": ("kronecker_solver",),
    "trpo_jax.sample_space": ("sample_space_solver",),
    "trpo_jax.distributions": ("Categorical", "DiagGaussian", "Product", "mask_logits"),
    "trpo_jax.networks": ("Network", "from_linen", "from_nnx"),
    "trpo_jax.algorithms.base": ("Algorithm",),
    "trpo_jax.envs.base": ("Environment", "StepResult"),
    "trpo_jax.envs.specs": ("Agents", "ArraySpec", "Box", "Discrete", "MultiDiscrete"),
    "trpo_jax.envs.costs": ("with_cost",),
    "trpo_jax.algorithms": (
        "cpo",
        "happo",
        "hatrpo",
        "mappo",
        "npg",
        "pcpo",
        "ppo",
        "ppo_lag",
        "qprop",
        "trpo",
        "trpo_ensemble",
        "trpo_held_out",
        "trpo_lag",
        "trpo_pid",
        "trpo_vine",
        "ua_trpo",
        "vpg",
    ),
}
_LAZY = {name: (module, name) for module, names in _MODULES.items() for name in names}
_LAZY["make_env"] = ("trpo_jax.envs", "make")

__all__ = sorted(_LAZY)


def __getattr__(name: str) -> Any:
    """Imports a public name at its first use."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _LAZY[name]
    globals()[name] = value = getattr(import_module(module), attribute)
    return value


def __dir__() -> list[str]:
    """Returns all names of the module, also public names that are not imported yet."""
    return sorted({*globals(), *__all__})
