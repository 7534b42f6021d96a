"""Policies for use without this library: arrays for NumPy, an ONNX model or a JAX program.

Each format takes a batch of observations `[N, ...]` as `ActingPolicy.shown` returns them. It
returns the actions `[N, ...]` that the environment takes, from the mode of the action distribution.
"""

import io
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.export
import numpy as np

from trpo_jax.envs.specs import Agents, ArraySpec, Box, Discrete, MultiDiscrete
from trpo_jax.errors import ConfigurationError
from trpo_jax.installing import how_to_install
from trpo_jax.networks import convolutions
from trpo_jax.normalization import CLIP, standard_deviation
from trpo_jax.observing import is_one_hot, is_standardized, seen_spec
from trpo_jax.records.acting import ActingPolicy
from trpo_jax.records.files import write_whole


def export(policy: ActingPolicy, path: str | Path) -> None:
    """Writes a policy to a file. The suffix of the file decides the format.

    - `.npz` holds arrays. A few lines of NumPy act with them (see `docs/policies.md`).
    - `.onnx` holds a model for onnxruntime and other runtimes.
    - `.jax` holds a program for CPUs, GPUs and TPUs. `jax.export.deserialize` reads it.

    A policy with a memory becomes a program `(carry, observations) -> (carry, actions)`. Its first
    carry is `policy.carry(N)`. This carry is all zeros if the library built the policy.

    Args:
        policy: a policy from `load_policy` or `Run.policy`.
        path: the file, which must not exist yet.

    Raises:
        ConfigurationError: if the suffix names no format, if the file exists, if a package is
            missing, or if the format cannot hold this policy.

    Examples:
        >>> run = trpo_jax.train(total_steps=2_048, seeds=2, progress=False)
        >>> trpo_jax.export(run.policy(seed=0), "policy.npz")
        >>> np.load("policy.npz")["kernel_0"].shape  # 4 observed numbers, 64 hidden units
        (4, 64)
    """
    path = Path(path)
    if path.suffix not in FORMATS:
        raise ConfigurationError(
            f"The suffix of {path} names no format. Choose one of {', '.join(FORMATS)}."
        )
    if path.exists():
        raise ConfigurationError(
            f"{path} exists, and will not be overwritten. Choose another file."
        )
    write_whole(path, FORMATS[path.suffix](policy))


class OneHot(NamedTuple):
    """The one-hot encoding of integers with a known range.

    Number f of the encoding is 1 if component `component[f]` of the flattened observation has the
    value `value[f]`, else 0.

    Attributes:
        component: index of a component of the flattened observation, `[F]`.
        value: the value that the component is compared with, `[F]`.
        seen: the shape that the F numbers are given.
    """

    component: np.ndarray
    value: np.ndarray
    seen: np.ndarray


class Layers(NamedTuple):
    """The mode of a policy as layers: standardise, apply each layer, then take the action.

    Attributes:
        one_hot: the one-hot encoding that comes first; None if the observations are not encoded.
        mean: mean that is subtracted from the observation, float64.
        deviation: standard deviation that the difference is divided by.
        clip: bound of the absolute value of the result.
        activation: name of the activation between two layers.
        kernels: weights of each layer, `[inputs, outputs]`. The inputs of a convolution are the
            numbers of one window, row by row, channels last.
        biases: biases of each layer, `[outputs]`.
        windows: size and stride of the window of each layer, `[L, 2]`; 0 for fully connected
            layers.
    """

    one_hot: OneHot | None
    mean: np.ndarray
    deviation: np.ndarray
    clip: float
    activation: str
    kernels: list[np.ndarray]
    biases: list[np.ndarray]
    windows: np.ndarray


def layers_of(policy: ActingPolicy) -> Layers:
    """Returns the layers of a policy that the library built.

    Raises:
        ConfigurationError: if the user passed in the policy, if it has a memory or several agents,
            or if its observations or actions have several parts.
    """
    several = any(isinstance(x, dict | tuple) for x in (policy.observation, policy.action))
    team = isinstance(policy.action, Agents)
    if several or team or policy.remembers:
        kind = "several agents" if team else "observations or actions of several parts"
        kind = "a memory" if policy.remembers else kind
        raise ConfigurationError(
            f"The policy of {policy.environment} has {kind}. Only the format .jax holds "
            "such a policy."
        )
    if policy.network is None:
        raise ConfigurationError(
            f"The policy of {policy.environment} has a network of your own. The library does not "
            "know its layers. Export it as .jax, which holds any network."
        )
    spec, seen = policy.observation, seen_spec(policy.observation).shape
    mean, deviation, clip = np.zeros(()), np.ones(()), np.inf
    if policy.normalized and is_standardized(spec):
        statistics = policy.actor.observation_statistics
        mean, clip = np.float64(statistics.mean) + np.float64(statistics.mean_rest), CLIP
        deviation = np.asarray(standard_deviation(statistics))
    elif spec.dtype == np.uint8 and not is_one_hot(spec):
        deviation = np.array(255.0)
    params = policy.actor.policy_params
    torso, head = (_dense(params.get(name, {})) for name in ("layers_0", "layers_1"))
    if isinstance(policy.action, Box):  # a second layer would give standard deviations
        head = head[:1]
    kernels, biases = ([np.asarray(x[name]) for x in torso] for name in ("kernel", "bias"))
    joined = [np.concatenate([x[name] for x in head], axis=-1) for name in ("kernel", "bias")]
    windows = [layer[1:] for layer in convolutions(seen)]
    windows += [(0, 0)] * (len(torso) + 1 - len(windows))
    return Layers(
        _one_hot(spec, seen) if is_one_hot(spec) else None,
        mean,
        deviation,
        clip,
        policy.network["activation"],
        [*kernels, joined[0]],
        [*biases, joined[1]],
        np.array(windows),
    )


def _one_hot(spec: ArraySpec, seen: tuple[int, ...]) -> OneHot:
    size = math.prod(spec.shape)
    counts = np.broadcast_to(spec.num_values, size)
    component = np.repeat(np.arange(size), counts)
    value = np.concatenate([np.arange(n) for n in counts])
    return OneHot(component, value, np.array(seen, np.int64))


def _dense(params: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    names = [name for name in params if name.startswith("Dense_")]
    return [params[name] for name in sorted(names, key=lambda x: int(x.removeprefix("Dense_")))]


def _to_npz(policy: ActingPolicy) -> bytes:
    layers, action = layers_of(policy), policy.action
    arrays = {name: getattr(layers, name) for name in ("mean", "deviation", "clip", "activation")}
    arrays["windows"] = layers.windows
    if layers.one_hot is not None:
        arrays |= layers.one_hot._asdict()
    for index, (kernel, bias) in enumerate(zip(layers.kernels, layers.biases, strict=True)):
        arrays |= {f"kernel_{index}": kernel, f"bias_{index}": bias}
    if isinstance(action, Box):
        arrays |= action.scaling._asdict() | {"shape": action.low.shape}
    else:
        sizes, starts = _choices(action)
        arrays |= {"splits": np.cumsum(sizes)[:-1], "start": starts, "shape": action.shape}
    file = io.BytesIO()
    np.savez(file, **{name: np.asarray(x) for name, x in arrays.items()})
    return file.getvalue()


def _choices(action: Discrete | MultiDiscrete) -> tuple[np.ndarray, np.ndarray]:
    """Returns the number of values of each of K choices, and its first value, both `[K]`."""
    sizes = np.atleast_1d(action.num_actions)
    return sizes, np.zeros_like(sizes) + np.asarray(action.start or 0, np.int64)


def _to_onnx(policy: ActingPolicy) -> bytes:
    try:
        import onnx
    except ImportError as error:
        raise ConfigurationError(
            "An .onnx file needs the package onnx, which is not installed. "
            f"Install it with: {how_to_install('onnx')}"
        ) from error
    from onnx import TensorProto, helper, numpy_helper

    layers, action, spec = layers_of(policy), policy.action, policy.observation
    nodes, constants = [], {}

    def add(kind, *inputs, outputs=1, **attributes):
        names = [f"x{len(nodes)}_{i}" for i in range(outputs)]
        inputs = [x if isinstance(x, str) else constant(x) for x in inputs]
        nodes.append(helper.make_node(kind, inputs, names, **attributes))
        return names[0] if outputs == 1 else names

    def constant(values):
        name = f"constant_{len(constants)}"
        constants[name] = numpy_helper.from_array(np.asarray(values), name)
        return name

    mean = np.float32(layers.mean)
    x = "observations"
    if layers.one_hot is not None:
        component, value, seen = layers.one_hot
        x = add("Reshape", x, np.array([-1, math.prod(spec.shape)]))
        x = add("Equal", add("Gather", x, component, axis=1), value.astype(spec.dtype))
        x = add("Reshape", x, np.array([-1, *seen]))
    x = add("Cast", x, to=TensorProto.FLOAT)
    x = add("Sub", add("Sub", x, mean), np.float32(layers.mean - mean))
    x = add("Div", x, np.float32(layers.deviation))
    x = add("Clip", x, np.float32(-layers.clip), np.float32(layers.clip))
    for index, (kernel, bias, (size, stride)) in enumerate(
        zip(layers.kernels, layers.biases, layers.windows.tolist(), strict=True)
    ):
        if size:
            kernel = kernel.reshape(size, size, -1, kernel.shape[1]).transpose(3, 2, 0, 1)
            x = add("Transpose", x, perm=[0, 3, 1, 2])
            x = add("Conv", x, kernel, bias, strides=[stride, stride])
            x = add("Transpose", x, perm=[0, 2, 3, 1])
        else:
            x = add("Gemm", add("Flatten", x), kernel, bias)
        if index + 1 < len(layers.kernels):
            x = ONNX_ACTIVATIONS[layers.activation](add, x)
    if isinstance(action, Box):
        offset, scale, low, high = action.scaling
        x = add("Reshape", x, np.array([-1, *low.shape]))
        x = add("Add", add("Mul", x, scale), offset)
        x = add("Min", add("Max", x, low), high)
        kind, shape_out = TensorProto.FLOAT, low.shape
    else:
        sizes, starts = _choices(action)
        parts = add("Split", x, sizes, axis=1, outputs=len(sizes)) if len(sizes) > 1 else [x]
        x = add("Concat", *(add("ArgMax", part, axis=1) for part in parts), axis=1)
        kind, shape_out = TensorProto.INT64, action.shape
        x = add("Reshape", add("Add", x, starts), np.array([-1, *shape_out]))
    nodes.append(helper.make_node("Identity", [x], ["actions"]))
    in_kind = helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype))
    graph = helper.make_graph(
        nodes,
        "policy",
        [helper.make_tensor_value_info("observations", in_kind, ["n", *spec.shape])],
        [helper.make_tensor_value_info("actions", kind, ["n", *shape_out])],
        list(constants.values()),
    )
    opset = [helper.make_opsetid("", ONNX_OPSET)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=ONNX_IR)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def _to_jax(policy: ActingPolicy) -> bytes:
    (size,) = jax.export.symbolic_shape("n")
    batch = jax.tree.map(
        lambda spec: jax.ShapeDtypeStruct((size, *spec.shape), spec.dtype), policy.observation
    )
    if policy.remembers:
        carry = jax.eval_shape(lambda: policy.carry(1))
        carry = jax.tree.map(lambda x: jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype), carry)
        program, args = jax.jit(partial(policy.step, key=None)), (carry, batch)
    else:
        program, args = jax.jit(lambda observations: policy.step((), observations)[1]), (batch,)
    exported = jax.export.export(program, platforms=("cpu", "cuda", "tpu"))(*args)
    return bytes(exported.serialize())


ONNX_OPSET, ONNX_IR = 20, 10  # versions of 2024, so that older runtimes read the file
ONNX_ACTIVATIONS: dict[str, Callable[..., str]] = {
    "tanh": lambda add, x: add("Tanh", x),
    "relu": lambda add, x: add("Relu", x),
    "elu": lambda add, x: add("Elu", x),
    "gelu": lambda add, x: add("Gelu", x, approximate="tanh"),
    "swish": lambda add, x: add("Mul", x, add("Sigmoid", x)),
}
FORMATS: dict[str, Callable[[ActingPolicy], bytes]] = {
    ".npz": _to_npz,
    ".onnx": _to_onnx,
    ".jax": _to_jax,
}
