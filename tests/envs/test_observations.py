"""What an environment shows becomes one array, checked against what its space promises."""

import numpy as np
import pytest

from trpo_jax.envs.base import ArraySpec
from trpo_jax.envs.observations import centre, example, flatten, spec_of
from trpo_jax.errors import Unpromised

VECTOR = {"kind": "box", "shape": [3], "dtype": "float32"}
BYTES = {"kind": "box", "shape": [2], "dtype": "uint8"}
PARTS = {
    "speed": {"kind": "box", "shape": [1], "dtype": "float32"},
    "goal": {"kind": "discrete", "n": 3, "start": -1},
    "keys": {
        "kind": "tuple",
        "parts": [
            {"kind": "multi_discrete", "shape": [2], "n": [2, 3], "start": [0, 5]},
            {"kind": "multi_binary", "shape": [2]},
        ],
    },
}
NESTED = {"kind": "dict", "parts": PARTS}
SHOWN = {"speed": np.ones(1), "goal": 1, "keys": (np.array([1, 7]), np.array([1, 0]))}
FLAT = [0, 0, 1, 0, 1, 0, 0, 1, 1, 0, 1]


def test_parts_are_joined_in_the_order_of_their_names():
    np.testing.assert_array_equal(flatten(NESTED, SHOWN), FLAT)
    assert spec_of(NESTED)[:2] == ((11,), np.float32)


def test_batches_have_the_same_axes_before_each_part():
    batch = {
        "speed": np.ones((4, 1)),
        "goal": np.full(4, 1),
        "keys": (np.tile([1, 7], (4, 1)), np.tile([1, 0], (4, 1))),
    }
    np.testing.assert_array_equal(flatten(NESTED, batch), [FLAT] * 4)


@pytest.mark.parametrize(
    ("layout", "shape", "dtype"),
    [
        (VECTOR, (3,), "float32"),
        (BYTES, (2,), "uint8"),
        ({**VECTOR, "dtype": "int64"}, (3,), "float32"),  # 32-bit integers cannot hold a time
        ({**VECTOR, "dtype": "int32"}, (3,), "float32"),
        ({**VECTOR, "dtype": "float64"}, (3,), "float32"),
        ({"kind": "discrete", "n": 4, "start": 7}, (4,), "int32"),
        (
            {"kind": "box", "shape": [3, 48, 40], "dtype": "uint8", "channels_first": True},
            (48, 40, 3),
            "uint8",
        ),
    ],
)
def test_networks_are_shown_numbers_of_32_bits_at_the_most(layout, shape, dtype):
    spec = spec_of(layout)
    assert spec[:2] == (shape, np.dtype(dtype))
    assert centre(spec, flatten(layout, example(layout))).dtype == dtype


@pytest.mark.parametrize(
    ("layout", "shown", "message"),
    [
        (VECTOR, np.zeros(1), r"float64, shape \(1,\).*promises float32, shape \(3,\)"),
        (VECTOR, 0.0, r"shape \(\).*promises float32, shape \(3,\)"),
        (VECTOR, None, "object, shape .*promises float32"),
        (VECTOR, np.zeros(3, complex), "complex128.*promises float32"),
        (BYTES, [300, -5], "from -5 to 300, where its space promises uint8, from 0 to 255"),
        (BYTES, [0.5, 1.0], "float64.*promises uint8"),
        (PARTS["goal"], 2, "from 2 to 2, where its space promises integers from -1 to 1"),
        (PARTS["goal"], 0.5, "promises integers"),
        (NESTED, SHOWN | {"goal": 5}, "in its part 'goal'"),
        (NESTED, {"speed": np.ones(1)}, "promises a dictionary of speed, goal, keys"),
        (NESTED, SHOWN | {"keys": ()}, "in its part 'keys', where its space promises a tuple of 2"),
    ],
)
def test_what_no_space_promised_is_said(layout, shown, message):
    with pytest.raises(Unpromised, match=message):
        flatten(layout, shown)


def test_what_a_space_means_is_taken():
    np.testing.assert_array_equal(flatten(BYTES, [0, 255]), np.array([0, 255], np.uint8))
    np.testing.assert_array_equal(flatten(VECTOR, [1, 2, 3]), np.float32([1, 2, 3]))


@pytest.mark.parametrize(
    ("origin", "numbers", "expected"),
    [
        (np.float64(1e9), [1e9 - 1, 1e9 + 1], [-1, 1]),
        (np.int64(1_700_000_000_000), [1_700_000_000_003, 0], [3, -1.7e12]),
        (np.int64(2**62 + 1), [2**62, -(2**62)], [-1, -(2.0**63)]),
        (np.uint64(2**63 + 5), [2**63, 2**63 + 6], [-5, 1]),
    ],
)
def test_a_signal_on_top_of_a_large_number_survives(origin, numbers, expected):
    spec = ArraySpec((1,), np.dtype(np.float32), origin=np.array([origin]))
    seen = centre(spec, np.array(numbers, origin.dtype)[:, None])
    np.testing.assert_array_equal(seen[:, 0], np.float32(expected))
