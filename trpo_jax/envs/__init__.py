"""Environments by name."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from trpo_jax import user_modules
from trpo_jax.envs.options import (
    Cost,  # noqa: F401
    Options,  # noqa: F401
    Wrapper,  # noqa: F401
    load_wrappers,
    parameters_of,
    require_known_args,
    takes,
    wrap,
)
from trpo_jax.errors import ConfigurationError, unknown_name
from trpo_jax.installing import how_to_install

if TYPE_CHECKING:  # this module imports jax, and listing names must not need jax
    from trpo_jax.envs.base import Environment
else:
    Environment = Any  # the tests check types at run time, and look up the annotation

# The packages of each suite, by the prefix of the names of its environments. The prefix is also the
# name of the extra of this package that installs them.
SUITES: dict[str, tuple[str, ...]] = {
    "gymnax": ("gymnax",),
    "gym": ("gymnasium", "mujoco", "box2d", "ale-py", "highway-env", "minigrid"),
    "envpool": ("envpool", "gymnasium"),
    "brax": ("brax", "mujoco-mjx"),
    "playground": ("playground", "mujoco-mjx"),
    "craftax": ("craftax",),
    "jumanji": ("jumanji",),
    "pgx": ("pgx",),
    "navix": ("navix",),
    "velocity": ("envpool", "gymnasium", "mujoco"),
    "driving": ("gymnasium", "highway-env"),
    "jaxmarl": ("jaxmarl",),
    "pettingzoo": ("pettingzoo", "mpe2"),
    "native": (),
}
PARTIAL = ("gymnax", "gym")  # suites with the tasks -NoVel, which hide velocities
WITH_INFO = ("gym", "envpool")  # suites whose steps return an info
IN_PROCESSES = ("driving", "pettingzoo")  # suites besides gym whose copies can run in processes
_MODULES = {"gym": "gymnasium"}
_NEEDS = {"navix": " (it needs Python 3.12)"}


def suite_of(name: str) -> tuple[str, str]:
    """Returns the suite of an environment, and the name of the environment in the suite.

    The suite is "" if a function of the user makes the environment.

    Raises:
        ConfigurationError: if there is no such suite.
    """
    if "/" not in name:
        return ("" if ":" in name else "gymnax"), name
    suite, own_name = name.split("/", 1)
    if suite not in SUITES:
        raise unknown_name("suite of environments", suite, SUITES)
    return suite, own_name


def folder_of(name: str) -> str:
    """Returns the name of an environment as a path. A path must not contain a colon."""
    return name.replace(":", "-")


def names() -> dict[str, list[str] | None]:
    """Returns the full names of all environments, by suite. None if a suite is not installed."""
    found: dict[str, list[str] | None] = {}
    for suite in SUITES:
        prefix = "" if suite == "gymnax" else f"{suite}/"
        try:
            own_names = import_module(f"trpo_jax.envs.{_MODULES.get(suite, suite)}").names()
        except (ImportError, AttributeError):  # not installed, or a version that does not fit
            found[suite] = None
        else:
            own_names = {*own_names, *_without_velocities(suite, own_names)}
            found[suite] = sorted(f"{prefix}{name}" for name in own_names)
    return found


def _without_velocities(suite: str, names: Iterable[str]) -> list[str]:
    from trpo_jax.envs.wrappers import NO_VELOCITY, NO_VELOCITY_SUFFIX

    tasks = NO_VELOCITY if suite in PARTIAL else ()
    return [f"{name}{NO_VELOCITY_SUFFIX}" for name in names if name in tasks]


def make(
    name: str,
    args: Mapping[str, Any] | None = None,
    wrappers: Sequence[Any] = (),  # of `Wrapper`; the elements are checked below
    processes: bool | None = False,
    timeout: float | None = None,
    costs: Sequence[Any] = (),
) -> Environment:
    """Returns the environment with this name.

    Args:
        name: one of three kinds of names. A suite and a name of that suite, such as
            "gym/Hopper-v5". A name of gymnax without a suite, such as "CartPole-v1". Or a module
            and a function that returns an `Environment`, such as "my_module:make_env" for a
            function in `my_module.py` in the current folder.
        args: keyword arguments for the environment, by name.
        wrappers: functions, or their names as "module:name", applied in this order. Each takes an
            `Environment` and returns one. In gym/, each takes an environment of Gymnasium and
            returns one, unless its argument is annotated as an `Environment`.
        processes: whether the copies run in processes, one for each core. Only in gym/, driving/
            and pettingzoo/.
        timeout: seconds that a reset or a step of all copies on the host may take. None means no
            limit.
        costs: costs of a step to add to those of the environment. Each is a function, its name as
            "module:name", or, in gym/ and envpool/, an entry of `info`, such as "info:cost". See
            `trpo_jax.envs.costs.with_costs`. The functions get the observations before wrappers of
            an `Environment` change them.

    Raises:
        ConfigurationError: if there is no such environment, if it does not have these arguments, if
            its suite is not installed or too old, if its spaces are not supported, or if a function
            or a wrapper of the user fails.

    Examples:
        >>> env = trpo_jax.make_env("CartPole-v1", {"gravity": 20.0})
        >>> env.action.num_actions, env.time_limit
        (2, 500)
        >>> far = lambda observation, action: abs(observation[0]) > 1.0
        >>> env = trpo_jax.make_env("CartPole-v1", costs=[far])
        >>> len(env.costs)
        1
    """
    from trpo_jax.envs.threads import with_timeout

    env = _make(name, args, wrappers, processes, costs)
    return env if timeout is None else with_timeout(env, timeout)


def _make(
    name: str,
    args: Mapping[str, Any] | None,
    wrappers: Sequence[Any],
    processes: bool | None,
    costs: Sequence[Any],
) -> Environment:
    from trpo_jax.envs.base import Environment
    from trpo_jax.envs.costs import info_costs, is_info_cost, with_costs
    from trpo_jax.envs.wrappers import NO_VELOCITY, NO_VELOCITY_SUFFIX, hide

    suite, own_name = suite_of(name)
    args, wrappers = dict(args or {}), load_wrappers(wrappers)
    whole_name = own_name.removesuffix(NO_VELOCITY_SUFFIX)
    if whole_name != own_name and whole_name in NO_VELOCITY and suite in PARTIAL:
        whole = _make(name.removesuffix(NO_VELOCITY_SUFFIX), args, (), processes, costs)
        env = hide(whole, NO_VELOCITY[whole_name])
        return wrap(name, env, wrappers, Environment)._replace(name=name)
    of_info, functions = info_costs(costs), [x for x in costs if not is_info_cost(x)]
    if of_info and suite not in WITH_INFO:
        raise ConfigurationError(
            f"The cost info:{next(iter(of_info))} does not work with {name!r}. Only steps of gym/ "
            "and envpool/ return an info. Name a function of the observation and the action "
            "instead, such as my_module:my_cost."
        )
    if suite == "gym":
        inside = [x for x in wrappers if not takes(x, Environment)]
        outside = [x for x in wrappers if x not in inside]
        module = _import_suite(suite, name)
        env = module.make(own_name, args, inside, bool(processes), of_info)
        return wrap(name, with_costs(env, functions), outside, Environment)
    if processes and suite not in IN_PROCESSES:
        raise ConfigurationError(
            "Only environments of gym/, driving/ and pettingzoo/ can run in processes, "
            f"not {name!r}. Leave --env-processes out."
        )
    if suite:
        module = _import_suite(suite, name)
        what = f"Environment {name!r} cannot be made with {args}"
        more = {"info_costs": of_info} if of_info else {}
        more |= {"processes": True} if processes else {}
        with user_modules.errors_located(what, module.__file__) if args else nullcontext():
            env = module.make(own_name, **args, **more)
    else:
        env = _make_own(name, args)
    return wrap(name, with_costs(env, functions), wrappers, Environment)._replace(name=env.name)


def _import_suite(suite: str, name: str) -> ModuleType:
    try:
        return import_module(f"trpo_jax.envs.{_MODULES.get(suite, suite)}")
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"Environment {name!r} needs the package {error.name!r}, which is not installed. "
            f"Install it with: {how_to_install(suite)}{_NEEDS.get(suite, '')}"
        ) from error
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(
            f"Environment {name!r} does not work with the installed version of its suite "
            f"({error}). Install another version with: {how_to_install(suite)}"
        ) from error


def _make_own(name: str, args: dict[str, Any]) -> Environment:
    from trpo_jax.envs.base import Environment

    module_name, _, function_name = name.partition(":")
    if module_name in SUITES:
        raise ConfigurationError(
            f"Unknown environment {name!r}. Did you mean {module_name}/{function_name}?"
        )
    function, file = user_modules.find("environment", name)
    require_known_args(name, args, parameters_of(function))
    with user_modules.errors_located(f"Environment {name!r} cannot be made", file):
        env = function(**args)
    if not isinstance(env, Environment):
        raise ConfigurationError(
            f"Environment {name!r} cannot be made: {function_name} in {file} returned "
            f"{type(env).__name__}, not trpo_jax.Environment."
        )
    return env._replace(name=name)
