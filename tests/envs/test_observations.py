"""Observations on the host become the arrays of their spec, and are checked."""

import jax
import numpy as np
import pytest

from trpo_jax.envs.observations import (
    array_spec,
    batch_shape,
    centre,
    integer_spec,
    num_numbers,
    to_arrays,
)
from trpo_jax.envs.specs import ArraySpec
from trpo_jax.errors import Unpromised

INT8 = np.dtype(np.int8)
VECTOR = array_spec((3,), "float32")
BYTES = array_spec((2,), "uint8")
IMAGE = array_spec((3, 48, 40), "uint8", channels_first=True)
GOAL = integer_spec((), "int64", 3, -1)
KEYS = (
    integer_spec((2,), "int64", [2, 3], [0, 5]),
    ArraySpec((2,), np.dtype(bool), (2,), own_dtype=INT8),
)
NESTED = {"speed": array_spec((1,), "float32"), "goal": GOAL, "keys": KEYS, "camera": IMAGE}
FRAME = np.arange(3 * 48 * 40).reshape(3, 48, 40).astype(np.uint8)
SHOWN = {
    "speed": np.ones(1),
    "goal": 1,
    "keys": (np.array([1, 7]), np.array([1, 0])),
    "camera": FRAME,
    "unread": "nobody asks for this",
}


def test_parts_keep_their_names_and_integers_start_at_0():
    arrays = centre(NESTED, to_arrays(NESTED, SHOWN))
    assert arrays.keys() == NESTED.keys()
    assert arrays["goal"] == 2
    np.testing.assert_array_equal(arrays["keys"][0], [1, 2])
    np.testing.assert_array_equal(arrays["keys"][1], [True, False])
    np.testing.assert_array_equal(arrays["camera"], np.moveaxis(FRAME, 0, -1))
    for spec, x in zip(jax.tree.leaves(NESTED), jax.tree.leaves(arrays), strict=True):
        assert (x.shape, x.dtype) == (spec.shape, spec.dtype)
    assert num_numbers(NESTED) == 1 + 1 + 4 + 3 * 48 * 40
    assert batch_shape(NESTED, arrays) == ()


def test_all_parts_of_a_batch_have_the_same_batch_axes():
    shown = {name: x for name, x in SHOWN.items() if name != "unread"}
    batch = jax.tree.map(lambda x: np.stack([np.stack([x] * 4)] * 2), shown)
    arrays, single = to_arrays(NESTED, batch), to_arrays(NESTED, SHOWN)
    jax.tree.map(lambda xs, x: np.testing.assert_array_equal(xs[1, 3], x), arrays, single)
    assert batch_shape(NESTED, arrays) == (2, 4)


@pytest.mark.parametrize(
    ("spec", "shape", "dtype"),
    [
        (VECTOR, (3,), "float32"),
        (BYTES, (2,), "uint8"),
        (array_spec((3,), "int64"), (3,), "float32"),  # a time does not fit into a 32-bit integer
        (array_spec((3,), "int32"), (3,), "float32"),
        (array_spec((3,), "int16"), (3,), "int16"),
        (array_spec((3,), "float64"), (3,), "float32"),
        (array_spec((3,), "bool"), (3,), "bool"),
        (integer_spec((), "int64", 4, 7), (), "int32"),
        (IMAGE, (48, 40, 3), "uint8"),
    ],
)
def test_networks_see_numbers_of_at_most_32_bits(spec, shape, dtype):
    assert (spec.shape, spec.dtype) == (shape, np.dtype(dtype))
    own = (shape[-1], *shape[:-1]) if spec.channels_first else shape
    first = np.full(own, 0 if spec.origin is None else spec.origin, spec.own_dtype or spec.dtype)
    arrays = to_arrays(spec, first)
    assert arrays.dtype == first.dtype
    shown = centre(spec, arrays)
    assert (shown.shape, shown.dtype) == (shape, dtype)
    assert not shown.any()


@pytest.mark.parametrize(
    ("spec", "shown", "message"),
    [
        (VECTOR, np.zeros(1), r"float64, shape \(1,\).*promises float32, shape \(3,\)"),
        (VECTOR, 0.0, r"shape \(\).*promises float32, shape \(3,\)"),
        (VECTOR, None, "object, shape .*promises float32"),
        (VECTOR, np.zeros(3, complex), "complex128.*promises float32"),
        (BYTES, [300, -5], "from -5 to 300, but its space promises uint8, from 0 to 255"),
        (BYTES, [0.5, 1.0], "float64.*promises uint8"),
        (GOAL, 2, r"from 2 to 2, but its space promises integers from -1 to 1, shape \(\)"),
        (GOAL, 0.5, "promises integers"),
        (KEYS[0], [1, 4], "from 1 to 4, but its space promises integers from 0 to 7"),
        (KEYS[1], [1, 2], "from 1 to 2, but its space promises integers from 0 to 1"),
        (IMAGE, FRAME.swapaxes(0, 2), r"\(40, 48, 3\).* promises uint8, shape \(3, 48, 40\)"),
        (NESTED, SHOWN | {"goal": 5}, r'in its part observation\["goal"\]'),
        (NESTED, {"speed": np.ones(1)}, "promises a dictionary of speed, goal, keys, camera"),
        (NESTED, SHOWN | {"keys": ()}, r'in its part observation\["keys"\], .* a tuple of 2'),
        (NESTED, SHOWN | {"keys": ([0, 5], [2, 0])}, r'part observation\["keys"\]\[1\], but'),
    ],
)
def test_the_error_for_an_observation_outside_its_space_describes_it(spec, shown, message):
    with pytest.raises(Unpromised, match=message):
        to_arrays(spec, shown)


def test_observations_of_compatible_types_are_accepted():
    np.testing.assert_array_equal(to_arrays(BYTES, [0, 255]), np.array([0, 255], np.uint8))
    np.testing.assert_array_equal(to_arrays(VECTOR, [1, 2, 3]), np.float32([1, 2, 3]))


@pytest.mark.parametrize(
    ("origin", "numbers", "expected"),
    [
        (np.float64(1e9), [1e9 - 1, 1e9 + 1], [-1, 1]),
        (np.int64(1_700_000_000_000), [1_700_000_000_003, 0], [3, -1.7e12]),
        (np.int64(2**62 + 1), [2**62, -(2**62)], [-1, -(2.0**63)]),
        (np.uint64(2**63 + 5), [2**63, 2**63 + 6], [-5, 1]),
    ],
)
def test_a_signal_that_is_added_to_a_large_number_is_kept(origin, numbers, expected):
    spec = ArraySpec((1,), np.dtype(np.float32), origin=np.array([origin]))
    seen = centre(spec, np.array(numbers, origin.dtype)[:, None])
    np.testing.assert_array_equal(seen[:, 0], np.float32(expected))
