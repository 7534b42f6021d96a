"""Which devices runs are on, and what of them is split over these.

Two things can be split. Whole runs have nothing to say to each other, so each device gets its share
of them. The environments of a run share its networks, so every mean over them is one over all
devices: the compiler, told where the environments are, places the sums that this takes.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from trpo_jax.algorithms.base import Algorithm
from trpo_jax.errors import ConfigurationError

RUNS, ENVIRONMENTS = "runs", "environments"


class Placement(NamedTuple):
    """How the arrays of R runs lie on several devices.

    Attributes:
        state: a sharding for each array of a state `[R, ...]`, or one for all of them.
        rest: sharding of all else that has the leading axis `[R]`: seeds, values, metrics.
        batched: `function of one run -> function of R runs`.
    """

    state: PyTree[NamedSharding]
    rest: NamedSharding
    batched: Callable[[Callable], Callable]

    @property
    def devices(self) -> list[jax.Device]:
        """The devices, of all processes."""
        return self.rest.mesh.devices.tolist()


def choose_devices(wanted: int | None) -> list[jax.Device]:
    """Returns the first few devices, those of all processes if there are several.

    Args:
        wanted: how many; all of them if None.

    Raises:
        ConfigurationError: if there are fewer, or some processes have more than others.
    """
    devices = jax.devices()
    if wanted is not None and not 1 <= wanted <= len(devices):
        kind, found = devices[0].platform, len(devices)
        flag = f"XLA_FLAGS=--xla_force_host_platform_device_count={wanted}"
        virtual = kind == "cpu" and wanted > found
        hint = f" A CPU counts as one, unless {flag} makes it several." if virtual else ""
        raise ConfigurationError(
            f"devices = {wanted} must be at least 1 and at most {found}, the number of {kind} "
            f"devices here.{hint}"
        )
    counts = Counter(device.process_index for device in devices)
    if len(set(counts.values())) > 1:
        raise ConfigurationError(
            f"The processes have {sorted(counts.values())} devices. Give each the same number."
        )
    return devices[:wanted]


def split_runs(devices: Sequence[jax.Device]) -> Placement:
    """Returns the placement that gives each device the same number of runs."""
    split = PartitionSpec(RUNS)
    sharding = NamedSharding(Mesh(np.array(devices), (RUNS,)), split)

    def batched(function):
        # Not left to the compiler: the condition of a batched loop would be that of all devices.
        return jax.shard_map(
            jax.vmap(function),
            mesh=sharding.mesh,
            in_specs=split,
            out_specs=split,
            check_vma=False,
        )

    return Placement(sharding, sharding, batched)


def split_environments(devices: Sequence[jax.Device], algorithm: Algorithm) -> Placement:
    """Returns the placement that gives each device the same number of environments of every run.

    The environments are the leading axis of every array in `state.rollout`, and nowhere else.

    Args:
        devices: the devices, whose number divides that of the environments.
        algorithm: what runs.
    """
    mesh = Mesh(np.array(devices), (ENVIRONMENTS,))
    whole = NamedSharding(mesh, PartitionSpec())
    split = NamedSharding(mesh, PartitionSpec(None, ENVIRONMENTS))
    shapes = jax.eval_shape(algorithm.init, jax.random.key(0))
    state = jax.tree.map(lambda _: whole, shapes)
    return Placement(state._replace(rollout=split), whole, jax.vmap)
