from typing import NamedTuple

import numpy as np
import pytest

from trpo_jax.envs.base import Environment, require_part, require_usable, wide_bounds
from trpo_jax.envs.specs import (
    ArraySpec,
    Box,
    Discrete,
    MultiDiscrete,
    choices_of,
    num_components,
    split_mask,
    with_parts,
)
from trpo_jax.errors import ConfigurationError

LARGEST = float(np.finfo(np.float32).max)


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
            r"of 2 numbers, .* 3 values\. .*, 3 in all",
        ),
        (
            env_of(
                (Discrete(3), {"x": MultiDiscrete((2, 4))}),
                shown=with_parts(VECTOR, action_mask=(MASK, MASK)),
            ),
            r"of 4 numbers, and actions with 3 \+ 2 \+ 4 values\. .*, 9 in all",
        ),
        (
            env_of(box_of([0], [1]), shown=with_parts(VECTOR, action_mask=MASK)),
            "actions with no values",
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
