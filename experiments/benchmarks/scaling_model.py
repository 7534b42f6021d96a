"""What an update costs whose environments are split over devices: a model on paper.

Each device has N / D of the N states. A product with the Fisher matrix takes it c P N / D
operations, for P parameters and c of them for a parameter and state; then the P numbers are summed
over all devices once, and so they are after every other gradient. All else that is communicated
are a few numbers. Vectors of P numbers every device works on as if it were alone.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

BYTES = 4  # of a float32
SCALARS = 16  # all-reduces of a few numbers in an update: moments, advantages, metrics
TRIED = 2  # lengths of a step that the line search looks at
BEFORE_AND_AFTER = 2  # looks at the policy, which say what a step did

# Operations for each parameter and state: two for a multiplication and an addition, forwards once
# and backwards twice. Those of a product are counted in compiled programs (scaling_measure.py).
FORWARD, GRADIENT = 2, 6
VECTORS = 12  # times that an iteration of conjugate gradient reads or writes P numbers beside it


class Machine(NamedTuple):
    """Devices and what connects them.

    Attributes:
        name: what they are.
        flops: operations a second that one attains.
        memory: bytes a second that it reads or writes.
        node: devices in a node.
        bandwidths: bytes a second that a device sends, inside of a node and out of it.
        latencies: seconds that an all-reduce takes at the least, inside of a node, and for each
            doubling of the nodes beyond it.
    """

    name: str
    flops: float
    memory: float
    node: int
    bandwidths: tuple[float, float]
    latencies: tuple[float, float]


class Setting(NamedTuple):
    """What is computed.

    Attributes:
        product: c, operations of a Fisher-vector product for each parameter and state.
        num_states: N, states in an update.
        cg_iters: iterations of conjugate gradient.
        subsample: every k-th state is in Fisher-vector products.
        critic_epochs: passes of the critic's fit.
        critic_minibatches: its parts of a pass; 0 for one Gauss-Newton step of `cg_iters` products.
    """

    product: float
    num_states: int = 2**20
    cg_iters: int = 10
    subsample: int = 1
    critic_epochs: int = 10
    critic_minibatches: int = 16


class Cost(NamedTuple):
    """Seconds of a device: at its share of the states, and at what takes all of them as long."""

    shared: float
    common: float

    @property
    def efficiency(self) -> float:
        """Share of the time that more devices would make shorter."""
        return self.shared / (self.shared + self.common)


def all_reduce_seconds(machine: Machine, num_bytes: float, num_devices: int) -> float:
    """Returns how long devices take to sum an array that each of them has.

    As in a ring, each sends 2 (n - 1) / n of the array (Patarasuk and Yuan 2009, "Bandwidth optimal
    all-reduce algorithms for clusters of workstations"); of several nodes, first each for itself,
    then one another, every device with its share of the array.
    """
    inside = min(num_devices, machine.node)
    nodes = num_devices / inside
    seconds = machine.latencies[0] * (inside > 1) + machine.latencies[1] * math.log2(nodes)
    seconds += ring(inside) * num_bytes / machine.bandwidths[0]
    return seconds + ring(nodes) * num_bytes / inside / machine.bandwidths[1]


def ring(count: float) -> float:
    """Returns what share of an array each of n members sends."""
    return 2 * (count - 1) / count


def iteration(machine: Machine, setting: Setting, num_params: int, num_devices: int) -> Cost:
    """Returns what one iteration of conjugate gradient costs."""
    states = setting.num_states / setting.subsample / num_devices
    return Cost(
        setting.product * num_params * states / machine.flops,
        all_reduce_seconds(machine, BYTES * num_params, num_devices)
        + VECTORS * BYTES * num_params / machine.memory,
    )


def update(machine: Machine, setting: Setting, num_params: int, num_devices: int) -> Cost:
    """Returns what an update costs without the environment's own steps, which nobody waits for.

    Policy and critic have as many parameters. The policy acts, its gradient is taken, products are
    prepared and taken, and lengths tried; the critic sees each state and the next, and is fitted.
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


def critic_sums(setting: Setting) -> int:
    """Returns how often an update sums the parameters of the critic."""
    if setting.critic_minibatches:
        return setting.critic_epochs * setting.critic_minibatches
    return 1 + setting.cg_iters


def most_devices(cost: Callable[[int], Cost], most: int = 2**20) -> int:
    """Returns the largest power of two of devices for which half of the time is shared."""
    number = 1
    while 2 * number <= most and cost(2 * number).efficiency >= 0.5:
        number *= 2
    return number
