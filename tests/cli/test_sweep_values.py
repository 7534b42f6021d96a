import pytest

from trpo_jax.cli.sweep_values import parse_grid, parse_range, refuse_repeats
from trpo_jax.errors import ConfigurationError
from trpo_jax.running.sweep_plan import Range


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("max_kl=0.003,1e-2", [0.003, 0.01]),
        ("num_envs=4,8", [4, 8]),
        ("hidden_sizes=64,64x64", [(64,), (64, 64)]),
        ("damped_scaling=true,false", [True, False]),
        ("activation=tanh,relu", ["tanh", "relu"]),
    ],
)
def test_values_have_the_type_of_their_field(text, values):
    assert parse_grid("trpo", text) == (text.partition("=")[0], values)


def test_a_range_has_a_scale():
    assert parse_range("max_kl=1e-3:1e-1:log") == ("max_kl", Range(1e-3, 1e-1, "log"))
    assert parse_range("damping=0:1") == ("damping", Range(0.0, 1.0))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("maxkl=1,2", r"Unknown hyperparameter 'maxkl'. Did you mean max_kl"),
        ("max_kl", r"not of the form NAME=VALUE"),
        ("max_kl=small", r"'small' is not a number"),
        ("num_envs=2.5", r"'2.5' is not an integer"),
        ("hidden_sizes=64,wide", r"'wide' is not integers with spaces between"),
        ("damped_scaling=yes", r"'yes' is not true or false"),
    ],
)
def test_a_grid_that_cannot_be_read_says_why(text, message):
    with pytest.raises(ConfigurationError, match=message):
        parse_grid("trpo", text)


@pytest.mark.parametrize("text", ["max_kl", "max_kl=0.1", "max_kl=0.1:x", "max_kl=1:2:log:3"])
def test_a_range_that_cannot_be_read_says_why(text):
    with pytest.raises(ConfigurationError, match="not of the form NAME=LOW:HIGH"):
        parse_range(text)


def test_a_field_cannot_be_swept_twice():
    with pytest.raises(ConfigurationError, match="max_kl is swept twice"):
        refuse_repeats(["max_kl=0.1", "gamma=0.9", "max_kl=0:1"])
