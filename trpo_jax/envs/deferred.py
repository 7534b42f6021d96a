"""Imports that wait until a module is used.

Some suites import modules only to draw. Most of the time to import the suite goes into them.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
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
