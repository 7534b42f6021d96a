"""Measures how the cost of a policy's step grows with its batch and with its CG iterations."""

from functools import partial
from typing import Any

import jax
import numpy as np
import speed_pieces as pieces
from timing import time_in_turns

BATCHES = (512, 2_048, 8_192, 32_768)
CG_ITERS = (5, 10, 20, 40)


def measure(repeats: int) -> dict[str, list[dict[str, float]]]:
    """Returns the seconds of a step of the first net, for each of `BATCHES` and of `CG_ITERS`.

    The second of `BATCHES` is the batch size for all of `CG_ITERS`.
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
    """Returns a function without arguments that calls the compiled function."""
    return partial(jax.jit(function).lower(*arguments).compile(), *arguments)
