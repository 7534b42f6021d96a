from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

from trpo_jax.envs.base import (
    ArraySpec,
    Box,
    Discrete,
    Environment,
    MultiDiscrete,
    choices_of,
    num_components,
    require_part,
    require_usable,
    split_mask,
    to_environment_action,
    to_space_action,
    wide_bounds,
    with_parts,
)
from trpo_jax.errors import ConfigurationError


def test_bounded_components_are_clipped_and_mapped_onto_the_bounds():
    box = Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 10.0], np.float32))
    actions = [([0.0, 0.0], [0.0, 5.0]), ([0.5, -0.5], [1.0, 2.5]), ([3.0, -9.0], [2.0, 0.0])]
    for action, expected in actions:
        result = to_environment_action(box, jnp.array(action))
        np.testing.assert_allclose(result, expected, rtol=1e-6)


def test_unbounded_components_and_shapes_are_kept():
    box = Box(np.full((2, 1), -np.inf, np.float32), np.array([[np.inf], [1.0]], np.float32))
    result = to_environment_action(box, jnp.array([7.0, -3.0]))
    np.testing.assert_allclose(result, [[7.0], [-3.0]])


@pytest.mark.parametrize("action", [0, 3])
def test_discrete_actions_are_kept(action):
    assert to_environment_action(Discrete(4), jnp.array(action)) == action


LARGEST = float(np.finfo(np.float32).max)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, np.inf, [0.0, 0.0, 0.5, 3.0]),  # clipped on the bounded side
        (-1.0, np.inf, [-1.0, 0.0, 0.5, 3.0]),
        (5.0, np.inf, [5.0, 5.0, 5.5, 8.0]),  # 0 is outside, so an action of 0 means the bound
        (-np.inf, -5.0, [-7.0, -5.0, -5.0, -5.0]),
        (-LARGEST, LARGEST, [-2.0, 0.0, 0.5, 3.0]),  # bounds that mean no bounds
        (-LARGEST, 1.0, [-2.0, 0.0, 0.5, 1.0]),
        (-1e300, 1e300, [-2.0, 0.0, 0.5, 3.0]),
        (3.0, 3.0, [3.0] * 4),
        (-1e17, 1e17, [-1e17, 0.0, 5e16, 1e17]),
    ],
)
def test_components_with_one_bound_no_bound_and_far_bounds(low, high, expected):
    box = Box(np.array([low]), np.array([high]))
    given = [to_environment_action(box, jnp.array([x])) for x in (-2.0, 0.0, 0.5, 3.0)]
    np.testing.assert_allclose(np.ravel(given), np.float32(expected), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_actions_are_inside_their_space_in_its_own_precision(dtype):
    low, high = np.array([-0.7, 0.1], dtype), np.array([0.1, 0.3], dtype)
    box = Box(low, high)
    for x in (-9.0, -1.0, 0.3, 1.0, 9.0):
        action = to_space_action(box, to_environment_action(box, jnp.full(2, x)))
        assert action.dtype == dtype
        assert ((low <= action) & (action <= high)).all()


def test_discrete_actions_begin_at_the_start_of_the_environment():
    assert to_environment_action(Discrete(3, -1), jnp.array(2)) == 1
    several = MultiDiscrete((2, 3), (-4, 7), np.dtype(np.int8))
    given = to_environment_action(several, (jnp.array(1), jnp.array(0)))
    np.testing.assert_array_equal(given, [-3, 7])
    assert to_space_action(several, given).dtype == np.int8


def env_of(action=None, shape=(2,), dtype="float32", time_limit=None, shown=None):
    spec = ArraySpec(shape, np.dtype(dtype)) if shown is None else shown
    action = Discrete(2) if action is None else action
    return Environment("odd", None, None, spec, action, time_limit)


def box_of(low, high, dtype="float32"):
    return Box(np.array(low, dtype), np.array(high, dtype))


class Pair(NamedTuple):
    first: ArraySpec
    second: ArraySpec


VECTOR, EMPTY = (ArraySpec((size,), np.dtype("float32")) for size in (2, 0))
MASK = ArraySpec((2,), np.dtype(bool))


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (env_of(Discrete(0)), "nothing to choose from"),
        (env_of(MultiDiscrete(())), "nothing to choose from"),
        (env_of(MultiDiscrete((3, 0))), "nothing to choose from"),
        (env_of(MultiDiscrete((3, 2), (1,))), "start must have one number for each component"),
        (env_of(Discrete(3, 2**31)), "more than 32 bits"),
        (env_of(box_of([0, 1], [1, -1])), "component 1 has a lower bound of 1 and an upper"),
        (env_of(box_of([np.nan], [1])), "component 0 has a lower bound of nan"),
        (env_of(box_of([], [])), "low and high must be arrays of floats of one shape"),
        (env_of(box_of([0], [1, 2])), "low and high must be arrays of floats of one shape"),
        (env_of(box_of([0], [1], int)), "low and high must be arrays of floats of one shape"),
        (env_of(shape=(0,)), r"observations of shape \(0,\), which hold no numbers"),
        (env_of(shape=(2, 0, 3)), "which hold no numbers"),
        (env_of(dtype="complex64"), "dtype complex64, but networks take only real numbers"),
        (env_of(dtype="<U8"), "dtype <U8, but networks take only real numbers"),
        (
            env_of(shown={"a": VECTOR, "b": (VECTOR, EMPTY)}),
            r'hold no numbers \(observation\["b"\]\[1',
        ),
        (env_of(shown={}), "an observation that is not a tree .* with at least one array"),
        (env_of(shown={0: VECTOR}), "keys of the dictionaries must be strings"),
        (env_of(shown=Pair(VECTOR, VECTOR)), "Named tuples are not allowed: their _asdict"),
        (env_of(shown={"a": (3,)}), r'a part observation\["a"\]\[0\] of type int, not ArraySpec'),
        (env_of({"go": (Discrete(0),)}), r'nothing to choose from \(action\["go"\]\[0\]\)'),
        (env_of({"go": VECTOR}), r'a part action\["go"\] of type ArraySpec, not .*Discrete'),
        (env_of(()), "an action that is not a tree"),
        (
            env_of(Discrete(3), shown=with_parts(VECTOR, action_mask=MASK)),
            r"of 2 numbers, .* 3\. .*, 3 in all",
        ),
        (
            env_of(
                (Discrete(3), {"x": MultiDiscrete((2, 4))}),
                shown=with_parts(VECTOR, action_mask=(MASK, MASK)),
            ),
            r"of 4 numbers, and actions with choices among 3 \+ 2 \+ 4\. .*, 9 in all",
        ),
        (
            env_of(box_of([0], [1]), shown=with_parts(VECTOR, action_mask=MASK)),
            "choices among nothing",
        ),
        (env_of(shown={"action_mask": MASK}), "only a mask of legal actions"),
        (env_of(time_limit=2.5), "a time limit of 2.5"),
        (env_of(time_limit=0), "a time limit of 0"),
        (env_of(time_limit=2**31), "a time limit of 2147483648"),
    ],
)
def test_unusable_specs_are_refused(env, message):
    with pytest.raises(ConfigurationError, match=rf"^Environment 'odd' has .*{message}"):
        require_usable(env)


@pytest.mark.parametrize("time_limit", [None, 1, np.int64(50), np.uint8(200), np.array(7)])
def test_usable_specs_and_any_integer_as_a_time_limit_are_accepted(time_limit):
    for action in (Discrete(1), MultiDiscrete((1, 2), (-5, 3)), box_of([0], [0]), box_of(-1, 1)):
        assert require_usable(env_of(action, dtype="uint8", time_limit=time_limit)) is None


def test_usable_trees_with_a_mask_for_all_choices_are_accepted():
    action = (Discrete(3), {"x": MultiDiscrete((2, 4)), "y": box_of([0], [1])})
    mask = {"first": ArraySpec((3,), np.dtype(bool)), "second": ArraySpec((2, 3), np.dtype("int8"))}
    shown = {"a": (VECTOR, {"b": VECTOR}), "secret": VECTOR, "action_mask": mask}
    assert require_usable(env_of(action, shown=shown)) is None
    assert require_part(env_of(action, shown=shown), "secret") is None
    assert choices_of(action) == (3, 2, 4)
    assert num_components(action) == 4
    assert split_mask(shown) == ({"a": (VECTOR, {"b": VECTOR}), "secret": VECTOR}, mask)
    assert with_parts(VECTOR, action_mask=MASK) == {"observation": VECTOR, "action_mask": MASK}


@pytest.mark.parametrize(
    ("shown", "name", "message"),
    [
        ({"a": VECTOR}, "b", ".* = 'b', .* no part .* Its parts: a. Set critic_observation"),
        (VECTOR, "b", "Its parts: none that have a name"),
        ({"a": VECTOR}, "a", "nothing for the policy to see, because 'a' is"),
        ({"a": VECTOR, "action_mask": MASK}, "a", "nothing for the policy to see, because 'a' is"),
    ],
)
def test_a_part_that_cannot_be_for_the_critic_only_is_refused(shown, name, message):
    with pytest.raises(ConfigurationError, match=message):
        require_part(env_of(shown=shown), name)


def test_far_bounds_give_a_warning_unless_they_mean_no_bounds():
    warning = wide_bounds(env_of(box_of([-1, -1e7], [1, 1e7])))
    assert "Component 1 of the actions of odd goes from -1e+07 to 1e+07" in warning
    warning = wide_bounds(env_of({"go": Discrete(2), "aim": (box_of([-1e7], [1e7]),)}))
    assert 'of odd in their part action["aim"][0] goes from -1e+07' in warning
    for action in (Discrete(2), box_of([-1e4], [1e4]), box_of([-LARGEST, 0], [LARGEST, np.inf])):
        assert wide_bounds(env_of(action)) is None
