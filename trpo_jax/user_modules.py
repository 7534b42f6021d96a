"""Modules of the user's own, by name. An error in one of them names the user's file and line."""

import importlib
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from trpo_jax.errors import ConfigurationError, unknown_name

PACKAGE = Path(__file__).parent


def load(name: str) -> ModuleType | None:
    """Returns the module of that name, or None if there is no such module.

    The current folder is searched first. It stays on Python's path, for what the module imports
    later.

    Raises:
        ConfigurationError: if the module, or one that it imports, raises an error.
    """
    if not all(part.isidentifier() for part in name.split(".")):
        return None
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    importlib.invalidate_caches()  # the file may be newer than what Python knows of its folder
    with errors_located(f"The module {name!r} cannot be imported", name):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if f"{name}.".startswith(f"{error.name}."):
                return None
            raise


def find(kind: str, name: str) -> tuple[Callable[..., Any], str]:
    """Returns the function or class that is called `module:name`, and the file of the module.

    Args:
        kind: word for it in messages, such as "wrapper".
        name: its name, with the module before the colon.

    Raises:
        ConfigurationError: if there is none of that name, or the module raises an error.
    """
    module_name, colon, function_name = name.partition(":")
    if not colon:
        raise ConfigurationError(
            f"The {kind} {name!r} has no module before it. Write my_module:{name} for a {name} in "
            "my_module.py in the current folder."
        )
    module = load(module_name)
    if module is None:
        here = Path.cwd()
        known = (path.stem for path in here.glob("*.py"))
        raise ConfigurationError(
            f"{unknown_name('module', module_name, known)} The {kind} {name!r} is looked for in "
            f"the current folder, {here}, and among the installed modules."
        )
    function, file = getattr(module, function_name, None), str(module.__file__)
    if not callable(function):
        public = getattr(module, "__all__", ())
        functions = [
            name
            for name, value in vars(module).items()
            if callable(value)
            and (name in public or getattr(value, "__module__", None) == module.__name__)
        ]
        raise ConfigurationError(
            f"{unknown_name('function', function_name, functions)} It is looked for in {file}."
        )
    return function, file


@contextmanager
def errors_located(what: str, file: str) -> Iterator[None]:
    """Turns an error in a user's code into a `ConfigurationError` that says where it was raised.

    Args:
        what: what could not be done.
        file: where the error is said to be if no line of the user's was reached.
    """
    try:
        yield
    except ConfigurationError:  # already written for the user
        raise
    except (Exception, SystemExit) as error:
        message = error.msg if isinstance(error, SyntaxError) else " ".join(str(error).split())
        raise ConfigurationError(
            f"{what}. {_place(error) or file}: {type(error).__name__}: {message}"
        ) from error


def _place(error: BaseException) -> str | None:
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}"
    frames = [
        (Path(frame.filename), frame)
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<")  # as Python's own importing is called
    ]
    inside = lambda path: path.is_relative_to(PACKAGE) or path == Path(importlib.__file__)
    users = [(path, frame) for path, frame in frames if not inside(path)]
    if not users:
        return None
    folder = users[0][0].parent  # of the module itself; libraries that it calls lie elsewhere
    own = [frame for path, frame in users if path.parent == folder]
    return f"{own[-1].filename}, line {own[-1].lineno}, in {own[-1].name}"
