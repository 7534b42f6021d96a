"""Imports that wait until a module is used.

Some suites import modules only to draw. Most of the time to import the suite goes into them.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any


class _Deferred(ModuleType):
    """A placeholder for a module. It imports the module at the first use of an attribute."""

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(self.__name__) is self:  # used inside of `deferred`
            del sys.modules[self.__name__]
        return getattr(import_module(self.__name__), name)


@contextmanager
def deferred(*names: str) -> Iterator[None]:
    """Gives placeholders of these modules to all code that is imported inside the `with` block.

    A placeholder imports its module when it is used. Imports after the block get the modules
    themselves.
    """
    absent = [name for name in names if name not in sys.modules]
    sys.modules.update((name, _Deferred(name)) for name in absent)
    try:
        yield
    finally:
        for name in absent:
            if isinstance(sys.modules.get(name), _Deferred):
                del sys.modules[name]


class _LazyPackage(ModuleType):
    """A package whose own code runs when a name is used that is not the name of a module in it."""

    def __getattr__(self, name: str) -> Any:
        module = f"{self.__name__}.{name}"
        if find_spec(module) is not None:
            return import_module(module)
        self.__class__ = ModuleType
        self.__spec__.loader.exec_module(self)
        return getattr(self, name)


def make_lazy(*packages: str) -> None:
    """Lets modules of packages be imported without running the code of the packages first.

    The code of some packages imports all of their modules. It runs when a name is used that only
    this code can define, such as `gymnax.make`. So the modules must not use such names while they
    are imported. Packages that are already imported stay as they are.

    Args:
        *packages: names of packages. A package comes after the package that holds it.

    Raises:
        ModuleNotFoundError: if a package that holds another one is not installed.
    """
    for name in packages:
        spec = None if name in sys.modules else find_spec(name)
        if spec is not None:
            sys.modules[name] = package = module_from_spec(spec)
            package.__class__ = _LazyPackage
