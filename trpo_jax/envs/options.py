"""The options of `make`: keyword arguments, wrappers, costs, processes and a timeout.

A command line and `config.json` hold them as text. The text of a value is a Python literal, or else
the value is the text itself. A wrapper or a cost is `module:name`.
"""

import ast
import dataclasses
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from trpo_jax import user_modules
from trpo_jax.errors import ConfigurationError, unknown_name

Wrapper = str | Callable[[Any], Any]
Cost = str | Callable[[Any, Any], Any]


class Options(NamedTuple):
    """The keyword arguments of `trpo_jax.envs.make`.

    Attributes:
        args: keyword arguments for the environment.
        wrappers: functions of an environment, or their names as `module:name`, applied in this
            order.
        processes: whether the copies run in processes, one for each core. None means the default.
        timeout: seconds that a reset or a step of all copies on the host may take. None means no
            limit.
        costs: entries of `info`, or functions of an observation and an action, or their names.
    """

    args: Mapping[str, Any] = MappingProxyType({})
    wrappers: Sequence[Wrapper] = ()
    processes: bool | None = None
    timeout: float | None = None
    costs: Sequence[Cost] = ()

    @property
    def named(self) -> bool:
        """Whether a command line can express all options."""
        texts = (*map(text_of, self.args.values()), *map(name_of, (*self.wrappers, *self.costs)))
        return all(text is not None for text in texts)

    def described(self) -> dict[str, Any]:
        """Returns the arguments, the wrappers, the costs and the timeout for `config.json`.

        It has no entry for an option that is not used. If a value, a wrapper or a cost has no name,
        None takes its place.
        """
        found: dict[str, Any] = {}
        if self.args:
            found["env_args"] = {name: text_of(value) for name, value in self.args.items()}
        if self.wrappers:
            found["wrappers"] = [name_of(wrapper) for wrapper in self.wrappers]
        if self.costs:
            found["costs"] = [name_of(cost) for cost in self.costs]
        if self.timeout is not None:
            found["env_timeout"] = self.timeout
        return found

    def flags(self) -> list[str]:
        """Returns the flags for the arguments, the wrappers, the costs and the timeout."""
        found = [f"--env-arg={name}={text_of(value)}" for name, value in self.args.items()]
        found += [] if self.timeout is None else [f"--env-timeout={self.timeout:g}"]
        found += [f"--wrapper={name_of(wrapper)}" for wrapper in self.wrappers]
        return [*found, *(f"--cost={name_of(cost)}" for cost in self.costs)]


def stored_options(description: Mapping[str, Any]) -> Options:
    """Returns the options in a `config.json`.

    Raises:
        ConfigurationError: if the file is damaged, or if a value, a wrapper or a cost has no name
            because the run was started from Python.
    """
    texts, lists = description.get("env_args", {}), {}
    for name in ("wrappers", "costs"):
        lists[name] = description.get(name, [])
    if not isinstance(texts, dict) or not all(isinstance(x, list) for x in lists.values()):
        raise ConfigurationError(
            f"config.json is damaged: its env_args, {texts!r}, must be a dictionary. Its wrappers, "
            f"{lists['wrappers']!r}, and its costs, {lists['costs']!r}, must be lists."
        )
    unnamed = [name for name, text in texts.items() if text is None]
    unnamed += [name for name, found in lists.items() if None in found]
    if unnamed:
        raise ConfigurationError(
            f"The environment {description['env']!r} of this run was made in Python, with objects "
            f"that config.json cannot store: {', '.join(unnamed)}. Name another environment, or "
            "continue in Python."
        )
    args = {name: parse_value(text) for name, text in texts.items()}
    processes, timeout = description.get("env_processes", False), description.get("env_timeout")
    wrappers, costs = map(tuple, lists.values())
    return Options(args, wrappers, processes, timeout, costs)


def parse_value(text: str) -> Any:
    """Returns the value of a text if it is a Python literal, and else the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return text


def text_of(value: Any) -> str | None:
    """Returns the text that `parse_value` turns into this value. None if there is no such text."""
    plain = isinstance(value, str) and parse_value(value) is value
    text = value if plain else repr(value)
    found = parse_value(text)
    return text if type(found) is type(value) and repr(found) == repr(value) else None


def name_of(wrapper: Wrapper) -> str | None:
    """Returns the `module:name` of a wrapper or a cost. None if it has no such name."""
    if isinstance(wrapper, str):
        return wrapper
    module, name = getattr(wrapper, "__module__", None), getattr(wrapper, "__qualname__", "")
    found = getattr(sys.modules.get(module), name, None)
    return f"{module}:{name}" if found is wrapper and module != "__main__" else None


def load_wrappers(wrappers: Any) -> list[Callable[[Any], Any]]:
    """Returns wrappers as functions.

    Raises:
        ConfigurationError: if a wrapper is neither a function nor the name of a function.
    """
    if isinstance(wrappers, str) or not isinstance(wrappers, Iterable):
        raise ConfigurationError(
            f"wrappers = {wrappers!r} must be a list of functions, or of names such as "
            "my_module:MyWrapper."
        )
    found = [user_modules.find("wrapper", x)[0] if isinstance(x, str) else x for x in wrappers]
    for wrapper in found:
        if not callable(wrapper):
            raise ConfigurationError(
                f"The wrapper {wrapper!r} must be a function of an environment, or its name, such "
                "as my_module:MyWrapper."
            )
    return found


def wrap(name: str, env: Any, wrappers: Iterable[Callable[[Any], Any]], kind: type) -> Any:
    """Applies wrappers to an environment, in order, and returns the result.

    Args:
        name: the name of the environment, for messages.
        env: the environment.
        wrappers: functions from `load_wrappers`.
        kind: the class that each wrapper must return.

    Raises:
        ConfigurationError: if a wrapper fails, or returns an object of another class.
    """
    for wrapper in wrappers:
        called = name_of(wrapper) or repr(wrapper)
        what = (
            f"The wrapper {called} failed for {name!r}. A wrapper gets only the environment. If it "
            "needs more arguments, write a function that passes them"
        )
        with user_modules.errors_located(what, called):
            env = wrapper(env)
        if not isinstance(env, kind):
            raise ConfigurationError(
                f"The wrapper {called} of {name!r} must return a {kind.__module__}.{kind.__name__}."
                f" It returned {type(env).__name__}."
            )
    return env


def takes(wrapper: Callable[[Any], Any], kind: type) -> bool:
    """Returns whether the first argument of a wrapper is annotated with this class."""
    try:
        parameters = inspect.signature(wrapper, eval_str=True).parameters.values()
    except (ValueError, NameError):  # a function in C, or an annotation with an unknown name
        return False
    return any(parameter.annotation is kind for parameter in list(parameters)[:1])


def require_known_args(name: str, args: Iterable[str], known: Iterable[str] | None) -> None:
    """Raises a ConfigurationError for the first argument that an environment does not have.

    Args:
        name: the name of the environment.
        args: the names of the given arguments.
        known: the names of the arguments that the environment has. None means that it takes any.
    """
    for arg in args:
        if known is not None and arg not in set(known):
            raise unknown_name(f"argument of {name}", arg, known)


def parameters_of(maker: Callable[..., Any]) -> set[str] | None:
    """Returns the names of the keyword arguments of a function or a class. None if it takes any.

    If a class passes other arguments to its base classes, their arguments are included.
    """
    is_class = isinstance(maker, type)
    makers = [x.__init__ for x in maker.__mro__ if "__init__" in vars(x)] if is_class else [maker]
    names: set[str] = set()
    for function in makers:
        try:
            parameters = inspect.signature(function).parameters.values()
        except ValueError:  # a function in C
            return None
        by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        names |= {x.name for x in parameters if x.kind in by_name}
        if not any(x.kind == inspect.Parameter.VAR_KEYWORD for x in parameters):
            return names - {"self"}
    return None


def replace_fields(name: str, params: Any, values: Mapping[str, Any]) -> Any:
    """Returns a dataclass of numbers with new values in some of its fields.

    Raises:
        ConfigurationError: if the type of a value is not the type of the field.
    """
    changed = {}
    for field, value in values.items():
        usual = getattr(params, field)
        kind = next((x for x in (bool, int, float) if isinstance(usual, x)), type(value))
        whole = kind is float and type(value) is int
        if not (whole or type(value) is kind):
            raise ConfigurationError(
                f"{field} = {value!r} of {name} must be of type {kind.__name__}, such as its "
                f"default {usual!r}."
            )
        changed[field] = kind(value)
    return dataclasses.replace(params, **changed)
