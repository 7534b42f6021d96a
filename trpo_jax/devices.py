"""Chooses the devices of runs, and splits runs or environments over the devices.

There are two ways to split. `split_runs` gives each device some of the runs. Runs do not depend on
each other, so the devices do not communicate. `split_environments` gives each device some of the
environments of every run. The environments of a run share its networks, so each mean over
environments is a mean over all devices. The compiler knows where the environments are, and adds
the communication.
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
    """The placement of the arrays of R runs on several devices.

    Attributes:
        state: a sharding for each array of a state `[R, ...]`, or one sharding for all of them.
        rest: the sharding of all other arrays with the leading axis `[R]`: seeds, hyperparameters
            and metrics.
        batched: `function of one run -> function of R runs`.
    """

    state: PyTree[NamedSharding]
    rest: NamedSharding
    batched: Callable[[Callable], Callable]

    @property
    def devices(self) -> list[jax.Device]:
        """The devices of all processes."""
        return self.rest.mesh.devices.tolist()


def choose_devices(wanted: int | None) -> list[jax.Device]:
    """Returns the first `wanted` devices of all processes.

    Args:
        wanted: the number of devices. None means all of them.

    Raises:
        ConfigurationError: if there are fewer devices, or if some processes have more devices than
            others.
    """
    devices = jax.devices()
    if wanted is not None and not 1 <= wanted <= len(devices):
        kind, found = devices[0].platform, len(devices)
        flag = f"XLA_FLAGS=--xla_force_host_platform_device_count={wanted}"
        virtual = kind == "cpu" and wanted > found
        hint = f" A CPU is one device. Set {flag} to split it into {wanted}." if virtual else ""
        raise ConfigurationError(
            f"devices = {wanted} must be at least 1 and at most {found}, the number of {kind} "
            f"devices here.{hint}"
        )
    counts = Counter(device.process_index for device in devices)
    if len(set(counts.values())) > 1:
        raise ConfigurationError(
            f"The processes have different numbers of devices: {sorted(counts.values())}. Give "
            "each process the same number."
        )
    return devices[:wanted]


def split_runs(devices: Sequence[jax.Device]) -> Placement:
    """Returns the placement that gives each device the same number of runs."""
    split = PartitionSpec(RUNS)
    sharding = NamedSharding(Mesh(np.array(devices), (RUNS,)), split)

    def batched(function):
        # If the compiler split the runs, each loop would go on until it ends on all devices.
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

    In the state of a run, only the arrays in `state.rollout` have environments as an axis. It is
    their leading axis.

    Args:
        devices: the devices. Their number divides the number of environments.
        algorithm: the algorithm of the runs.
    """
    mesh = Mesh(np.array(devices), (ENVIRONMENTS,))
    whole = NamedSharding(mesh, PartitionSpec())
    split = NamedSharding(mesh, PartitionSpec(None, ENVIRONMENTS))
    shapes = jax.eval_shape(algorithm.init, jax.random.key(0))
    state = jax.tree.map(lambda _: whole, shapes)
    return Placement(state._replace(rollout=split), whole, jax.vmap)
