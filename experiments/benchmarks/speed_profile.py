"""Profiles conjugate gradient: which kinds of kernels take the time of a Fisher-vector product."""

import math
import re
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import jax
import speed_pieces as pieces

STATES = 2_048
CALLS = 5
INSTRUCTION = re.compile(r"%?([\w.-]+) = \(?(\w+)\[([\d,]*)\]\S* ([\w-]+)\((.*)")
PRODUCTS, SUMS, OTHERS = "products with weights", "products that sum over states", "all others"


def measure() -> list[dict[str, Any]]:
    """Returns a row for each kind of kernel in a Fisher-vector product of the first net.

    The kernels of two threads can overlap, so their times may add up to more than the time of a
    product.
    """
    functions, arguments = pieces.prepare(pieces.nets()[0], STATES)
    solve = jax.jit(functions["conjugate gradient, 10 iterations"]).lower(*arguments).compile()
    jax.block_until_ready(solve(*arguments))
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(CALLS):
                jax.block_until_ready(solve(*arguments))
        (file,) = Path(folder).rglob("*.xplane.pb")
        profile = jax.profiler.ProfileData.from_file(str(file))
    products = dots_of(solve.as_text())
    found: dict[str, list[float]] = defaultdict(lambda: [0, 0.0, 0.0])
    for plane in profile.planes:
        for line in plane.lines:
            for event in line.events:
                if not any("hlo" in name for name, _ in event.stats) or "while" in event.name:
                    continue
                kind, operations = products.get(event.name, (OTHERS, 0.0))
                row = found[kind]
                row[0] += 1
                row[1] += 1e-9 * event.duration_ns
                row[2] += operations
    iterations = CALLS * pieces.CG_ITERS
    return [
        {
            "kind": kind,
            "kernels": count / iterations,
            "seconds": seconds / iterations,
            "operations_per_second": operations / seconds if operations else None,
        }
        for kind, (count, seconds, operations) in sorted(found.items())
    ]


def dots_of(program: str) -> dict[str, tuple[str, float]]:
    """Returns the kind and the number of operations of each matrix product of a program.

    Args:
        program: the text of the compiled program. A product is an instruction `dot`, or a fusion
            that contains one.
    """
    shapes: dict[str, list[int]] = {}
    dots: dict[str, tuple[str, float]] = {}
    inside = ""
    for line in program.splitlines():
        if line.startswith(("%", "ENTRY")) and line.endswith("{"):
            inside = line.split()[0].lstrip("%")
        if (match := INSTRUCTION.search(line)) is None:
            continue
        name, _, sizes, opcode, rest = match.groups()
        shapes[name] = [int(size) for size in sizes.split(",") if size]
        if opcode == "dot":
            first = re.search(r"%([\w.-]+)", rest).group(1)
            axis = int(re.search(r"lhs_contracting_dims=\{(\d+)", rest).group(1))
            summed = shapes[first][axis]
            kind = SUMS if summed == STATES else PRODUCTS
            dots[name] = dots[inside] = kind, 2.0 * summed * math.prod(shapes[name])
        elif (called := re.search(r"calls=%([\w.-]+)", rest)) and called.group(1) in dots:
            dots[name] = dots[called.group(1)]
    return dots
