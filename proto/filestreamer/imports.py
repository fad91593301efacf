"""Imports libraries without modules that they import and nothing here needs: most of a start is importing."""

import contextlib
import importlib
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import cast


@contextlib.contextmanager
def without(*deferred: str, absent: Sequence[str] = ()) -> Iterator[None]:
    """Import libraries for which these modules are not there yet, or, the `absent` ones, not at all.

    A deferred module is imported when one of its attributes is asked for. None stands for a module that can't be found
    ("The module cache" in the Python reference). No other thread may import any of them meanwhile.
    """
    stand_ins = {name: _Deferred(name) for name in deferred} | dict.fromkeys(absent)
    hidden = {name: stand_in for name, stand_in in stand_ins.items() if name not in sys.modules}
    sys.modules.update(cast("dict[str, ModuleType]", hidden))
    try:
        yield
    finally:
        for name, stand_in in hidden.items():
            if sys.modules.get(name, ...) is stand_in:
                del sys.modules[name]


class _Deferred(ModuleType):
    """Stands for a module until one of its attributes is asked for."""

    def __getattr__(self, name: str) -> object:
        if sys.modules.get(self.__name__) is self:
            sys.modules.pop(self.__name__, None)
        return getattr(importlib.import_module(self.__name__), name)
