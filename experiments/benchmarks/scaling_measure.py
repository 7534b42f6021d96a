"""Measures conjugate gradient over states that are split over processes.

scaling.py starts this script once for one process and twice for two processes. The first process
writes the measurements.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from collectives import collectives
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from trpo_jax.cli.command_line import Parser
from trpo_jax.cli.placement import exit_with, join_processes
from trpo_jax.cli.process_flags import add_process_flags
from trpo_jax.devices import ENVIRONMENTS
from trpo_jax.envs.specs import ArraySpec, Box
from trpo_jax.fisher import fisher_vector_product
from trpo_jax.networks import make_policy, over_two_axes
from trpo_jax.processes import is_first, to_devices
from trpo_jax.solvers import conjugate_gradient

OBSERVATION = ArraySpec((17,), np.dtype(np.float32))  # of HalfCheetah
ACTION = Box(-np.ones(6, np.float32), np.ones(6, np.float32))
CG_ITERS = 10
STEPS = 16
# (width of two hidden layers, number of environments); each solve takes about a second.
NETS = ((56, 1024), (206, 512), (692, 64), (2224, 16))


def main() -> int:
    """Runs the script and returns its exit code."""
    words = sys.argv[1:]
    parser = Parser(description=__doc__)
    help_text = "file that the first process writes"
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help=help_text)
    help_text = "number of turns of each measurement"
    parser.add_argument("--repeats", type=int, required=True, metavar="N", help=help_text)
    add_process_flags(parser)
    args = parser.parse_args(words)
    join_processes(words)
    compute_on_one_core()
    mesh = Mesh(np.array(jax.devices()), (ENVIRONMENTS,))
    rows = [measure(mesh, width, num_envs, args.repeats) for width, num_envs in NETS]
    if is_first():
        args.out.write_text(json.dumps(rows))
    return 0


def compute_on_one_core() -> None:
    """Gives XLA one thread for its computations. The thread may run on any core."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})  # XLA counts the cores when it starts
    jax.devices()
    for thread in os.listdir("/proc/self/task"):
        os.sched_setaffinity(int(thread), cores)


def measure(mesh: Mesh, width: int, num_envs: int, repeats: int) -> dict[str, Any]:
    """Returns the seconds of a solve and of its parts, for a policy of the given width."""
    policy = make_policy(OBSERVATION, ACTION, hidden_sizes=(width, width))
    apply = over_two_axes(policy.apply)
    shapes = jax.eval_shape(policy.init, jax.random.key(0))
    random = np.random.default_rng(0)
    normal = lambda shape: random.normal(size=shape).astype(np.float32)
    params = jax.tree.map(lambda x: normal(x.shape) / np.sqrt(width), shapes)
    observations = normal((STEPS, num_envs, *OBSERVATION.shape))
    whole = NamedSharding(mesh, PartitionSpec())
    split = NamedSharding(mesh, PartitionSpec(None, ENVIRONMENTS))
    gradient = jax.tree.map(np.ones_like, params)
    arguments = [to_devices(x, whole) for x in (params, gradient)]
    arguments.append(to_devices(observations, split))
    compiling = partial(jax.jit, in_shardings=(whole, whole, split), out_shardings=whole)

    def solve(params, gradient, observations):
        product = fisher_vector_product(lambda p: apply(p, observations), params)
        damped = lambda v: jax.tree.map(lambda a, b: a + 0.1 * b, product(v), v)
        return conjugate_gradient(damped, gradient, CG_ITERS, tolerance=0.0).x

    def vectors(params, gradient, observations):
        scaled = lambda v: jax.tree.map(lambda x: 0.5 * x, v)
        return conjugate_gradient(scaled, gradient, CG_ITERS, tolerance=-1.0).x

    def product(params, gradient, observations):
        return fisher_vector_product(lambda p: apply(p, observations), params)(gradient)

    def forward(params, gradient, observations):
        return jnp.mean(apply(params, observations).mean)

    compiled = {
        f.__name__: compiling(f).lower(*arguments).compile()
        for f in (solve, vectors, product, forward)
    }
    calls = {name: partial(compiled[name], *arguments) for name in ("solve", "vectors")}
    if jax.process_count() > 1:
        calls["sums"] = sums_of(params, mesh)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    cores = []
    for turn in range(repeats + 1):
        for name, call in calls.items():
            started, busy = time.perf_counter(), time.process_time()
            jax.block_until_ready(call())
            if turn > 0:  # the first turn compiles and connects the processes
                seconds[name].append(time.perf_counter() - started)
                cores.append((time.process_time() - busy) / seconds[name][-1])
    num_params = sum(x.size for x in jax.tree.leaves(params))
    found = collectives(compiled["solve"].as_text())
    counted = (compiled[name].cost_analysis()["flops"] for name in ("product", "forward"))
    product_flops, forward_flops = counted
    return {
        "hidden_sizes": (width, width),
        "num_params": num_params,
        "num_states": STEPS * num_envs,
        "processes": jax.process_count(),
        "solve_seconds": seconds["solve"],
        "vectors_seconds": seconds["vectors"],
        "sums_seconds": seconds.get("sums", []),
        "cores_in_use": max(cores),
        "collectives": [(x.kind, x.num_bytes) for x in found],
        "product_operations": (product_flops - forward_flops)
        * jax.process_count()
        / (num_params * STEPS * num_envs),
    }


def sums_of(params: Any, mesh: Mesh) -> Callable[[], Any]:
    """Returns a function that sums arrays over devices ten times, with the shapes of `params`."""
    parts = jax.tree.map(lambda x: np.ones((mesh.size, x.size), np.float32), params)
    split = NamedSharding(mesh, PartitionSpec(ENVIRONMENTS))

    def body(carry, _, parts):
        added = jax.tree.map(lambda x, c: jnp.sum(x * c, axis=0) / mesh.size, parts, carry)
        return added, None

    @partial(jax.jit, out_shardings=NamedSharding(mesh, PartitionSpec()))
    def run(parts):
        start = jax.tree.map(lambda x: jnp.ones(x.shape[1]), parts)
        return jax.lax.scan(partial(body, parts=parts), start, length=CG_ITERS)[0]

    return partial(run, to_devices(parts, split))


if __name__ == "__main__":
    exit_with(main)
