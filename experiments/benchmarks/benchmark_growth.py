"""How the cost of a policy's step grows with its batch and with conjugate gradient's iterations."""

from functools import partial
from typing import Any

import benchmark_pieces as pieces
import jax
import numpy as np
from timing import time_in_turns

BATCHES = (512, 2_048, 8_192, 32_768)
CG_ITERS = (5, 10, 20, 40)


def measure(repeats: int) -> dict[str, list[dict[str, float]]]:
    """Returns seconds of a step of the first net of `pieces.nets`, over each of the two.

    The batch is the second of `BATCHES` where the iterations grow.
    """
    net = pieces.nets()[0]
    steps = {}
    for batch_size in BATCHES:
        functions, arguments = pieces.prepare(net, batch_size)
        steps["batch", batch_size] = compiled(functions["policy step"], arguments)
    for cg_iters in CG_ITERS:
        functions, arguments = pieces.prepare(net, BATCHES[1], cg_iters)
        steps["cg_iters", cg_iters] = compiled(functions["policy step"], arguments)
    seconds = time_in_turns(steps, repeats)
    return {
        over: [
            {over: size, "seconds": float(np.median(x))}
            for (name, size), x in seconds.items()
            if name == over
        ]
        for over in ("batch", "cg_iters")
    }


def compiled(function: Any, arguments: tuple[Any, ...]) -> Any:
    """Returns a call of a compiled function with arguments."""
    return partial(jax.jit(function).lower(*arguments).compile(), *arguments)
