"""Loads modules of the user by name. Errors in these modules name the user's file and line."""

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
    """Returns the module with this name, or None if there is no such module.

    The current folder is searched first. The folder stays on Python's path, because the module can
    import other files later.

    Raises:
        ConfigurationError: if the module, or another module that it imports, raises an error.
    """
    if not all(part.isidentifier() for part in name.split(".")):
        return None
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    importlib.invalidate_caches()  # Python may have listed the folder before the file was written
    with errors_located(f"The module {name!r} cannot be imported", name):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if f"{name}.".startswith(f"{error.name}."):
                return None
            raise


def find(kind: str, name: str) -> tuple[Callable[..., Any], str]:
    """Returns the function or class `module:name`, and the file of the module.

    Args:
        kind: what the function is, for messages, such as "wrapper".
        name: the name of the module and of the function, such as "my_module:my_function".

    Raises:
        ConfigurationError: if there is no such function, or the module raises an error.
    """
    module_name, colon, function_name = name.partition(":")
    if not colon:
        raise ConfigurationError(
            f"The {kind} {name!r} does not name its module. Write my_module:{name} if {name} is in "
            "my_module.py in the current folder."
        )
    module = load(module_name)
    if module is None:
        here = Path.cwd()
        known = (path.stem for path in here.glob("*.py"))
        raise ConfigurationError(
            f"{unknown_name('module', module_name, known)} The {kind} {name!r} must be in the "
            f"current folder, {here}, or in an installed module."
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
            f"{unknown_name('function', function_name, functions)} It must be in {file}."
        )
    return function, file


@contextmanager
def errors_located(what: str, file: str) -> Iterator[None]:
    """Turns an error in the user's code into a `ConfigurationError` that says where it is.

    Args:
        what: what could not be done.
        file: the place to name if the error is not in a line of the user's code.
    """
    try:
        yield
    except ConfigurationError:  # its message is for the user already
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
        if not frame.filename.startswith("<")  # Python's import system has such names
    ]
    inside = lambda path: path.is_relative_to(PACKAGE) or path == Path(importlib.__file__)
    users = [(path, frame) for path, frame in frames if not inside(path)]
    if not users:
        return None
    folder = users[0][0].parent  # folder of the user's module; its libraries are elsewhere
    own = [frame for path, frame in users if path.parent == folder]
    return f"{own[-1].filename}, line {own[-1].lineno}, in {own[-1].name}"
