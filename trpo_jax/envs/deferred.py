"""Modules that a suite imports for drawing only, and that most of its import's time goes into."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any


class _Deferred(ModuleType):
    """Stands in for a module, and imports it when something of it is used."""

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(self.__name__) is self:  # used while it still stands in
            del sys.modules[self.__name__]
        return getattr(import_module(self.__name__), name)


@contextmanager
def deferred(*names: str) -> Iterator[None]:
    """Lets what is imported inside get these modules only when it uses something of them.

    Whoever imports them afterwards gets the modules themselves.
    """
    absent = [name for name in names if name not in sys.modules]
    sys.modules.update((name, _Deferred(name)) for name in absent)
    try:
        yield
    finally:
        for name in absent:
            if isinstance(sys.modules.get(name), _Deferred):
                del sys.modules[name]
