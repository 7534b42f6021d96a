"""Calculates the cost of an update whose environments are split over devices.

Each of D devices has N / D of the N states. With P parameters, a product with the Fisher matrix
takes c P N / D operations on each device, where c is the number of operations for one parameter and
one state. Then the P numbers of the product are summed over all devices. Every gradient is summed
in the same way. All other communication is a few numbers. The work on vectors of P numbers is not
split: every device does all of it.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

BYTES = 4  # of a float32
SCALARS = 16  # sums of a few numbers in an update, for moments, advantages and metrics
TRIED = 2  # step lengths that the line search tries
BEFORE_AND_AFTER = 2  # evaluations of the policy that measure the change

# Operations for each parameter and state. A forward pass has one multiplication and one addition,
# and a backward pass has twice as many. scaling_measure.py counts the operations of a product.
FORWARD, GRADIENT = 2, 6
VECTORS = 12  # reads or writes of P numbers in an iteration of CG, besides the product


class Machine(NamedTuple):
    """Devices and their connections.

    Attributes:
        name: name of the devices.
        flops: operations per second of a device.
        memory: bytes per second that a device reads or writes.
        node: number of devices in a node.
        bandwidths: bytes per second that a device sends, within a node and to other nodes.
        latencies: least seconds of a sum within a node, and further seconds for each doubling of
            the nodes.
    """

    name: str
    flops: float
    memory: float
    node: int
    bandwidths: tuple[float, float]
    latencies: tuple[float, float]


class Setting(NamedTuple):
    """The settings of an update.

    Attributes:
        product: c, operations of a Fisher-vector product for each parameter and state.
        num_states: N, states in an update.
        cg_iters: iterations of conjugate gradient.
        subsample: k, if Fisher-vector products use every k-th state.
        critic_epochs: passes in a fit of the critic.
        critic_minibatches: minibatches in each pass; 0 for one Gauss-Newton step of `cg_iters`
            products.
    """

    product: float
    num_states: int = 2**20
    cg_iters: int = 10
    subsample: int = 1
    critic_epochs: int = 10
    critic_minibatches: int = 16


class Cost(NamedTuple):
    """Seconds of a device: `shared` for its share of the states, `common` for all other work."""

    shared: float
    common: float

    @property
    def efficiency(self) -> float:
        """Share of the time that falls with more devices."""
        return self.shared / (self.shared + self.common)


def all_reduce_seconds(machine: Machine, num_bytes: float, num_devices: int) -> float:
    """Returns the seconds that devices need to sum an array, of which each device has a copy.

    In a ring of n devices, each device sends 2 (n - 1) / n of the array (Patarasuk and Yuan 2009,
    "Bandwidth optimal all-reduce algorithms for clusters of workstations"). If there are several
    nodes, they first sum within each node. Then each device sums its part of the array over nodes.
    """
    inside = min(num_devices, machine.node)
    nodes = num_devices / inside
    seconds = machine.latencies[0] * (inside > 1) + machine.latencies[1] * math.log2(nodes)
    seconds += ring(inside) * num_bytes / machine.bandwidths[0]
    return seconds + ring(nodes) * num_bytes / inside / machine.bandwidths[1]


def ring(count: float) -> float:
    """Returns the share of an array that each of `count` members of a ring sends."""
    return 2 * (count - 1) / count


def iteration(machine: Machine, setting: Setting, num_params: int, num_devices: int) -> Cost:
    """Returns the cost of one iteration of conjugate gradient."""
    states = setting.num_states / setting.subsample / num_devices
    return Cost(
        setting.product * num_params * states / machine.flops,
        all_reduce_seconds(machine, BYTES * num_params, num_devices)
        + VECTORS * BYTES * num_params / machine.memory,
    )


def update(machine: Machine, setting: Setting, num_params: int, num_devices: int) -> Cost:
    """Returns the cost of an update without the steps of the environment.

    These steps need no communication. Policy and critic have the same number of parameters. The
    policy acts, computes its gradient, prepares and computes products, and tries step lengths. The
    critic computes the values of each state and of the next state, and is then fitted.
    """
    policy = FORWARD + GRADIENT + FORWARD + FORWARD * (TRIED + BEFORE_AND_AFTER)
    critic = 2 * FORWARD
    sums = 1 + critic_sums(setting)
    if setting.critic_minibatches:
        critic += setting.critic_epochs * GRADIENT
    else:
        critic += GRADIENT + setting.cg_iters * setting.product
    sum_seconds = all_reduce_seconds(machine, BYTES * num_params, num_devices)
    few = all_reduce_seconds(machine, BYTES * 8, num_devices) * (SCALARS + TRIED)
    operations = (policy + critic) * num_params * setting.num_states / num_devices
    solve = iteration(machine, setting, num_params, num_devices)
    return Cost(
        operations / machine.flops + setting.cg_iters * solve.shared,
        sums * sum_seconds + few + setting.cg_iters * solve.common,
    )


def between(sizes: Sequence[float], values: Sequence[float], size: float) -> float:
    """Returns the value at a size between two measured sizes. Both are on logarithmic scales.

    Raises:
        ValueError: if the size is below the smallest or above the largest measured size.
    """
    if not min(sizes) <= size <= max(sizes):
        raise ValueError(f"size {size:g} is not between {min(sizes):g} and {max(sizes):g}")
    return float(np.exp(np.interp(np.log(size), np.log(sizes), np.log(values))))


def critic_sums(setting: Setting) -> int:
    """Returns the number of sums of the critic's gradient in an update."""
    if setting.critic_minibatches:
        return setting.critic_epochs * setting.critic_minibatches
    return 1 + setting.cg_iters


def most_devices(cost: Callable[[int], Cost], most: int = 2**20) -> int:
    """Returns the largest number of devices, a power of two, with an efficiency of at least 0.5."""
    number = 1
    while 2 * number <= most and cost(2 * number).efficiency >= 0.5:
        number *= 2
    return number
