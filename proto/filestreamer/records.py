"""Classes of fields that nobody sets again, made in a fifth of the time of dataclasses when a command starts."""

import reprlib
from dataclasses import Field, dataclass, field, fields
from typing import Any, ClassVar, dataclass_transform


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
class Record:
    """The base of such classes. A type checker sees that no field is set again; at run time nothing does.

    A dataclass has code generated, compiled and run for what compares and shows it, and for what refuses that a field
    is set: most of what it takes to make one. Here all classes share what compares and shows them.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def __init_subclass__(cls, *, kw_only: bool = False) -> None:
        dataclass(eq=False, repr=False, kw_only=kw_only)(cls)

    def _values(self) -> tuple[object, ...]:
        return tuple([getattr(self, one.name) for one in fields(self)])

    def __eq__(self, other: object) -> bool:
        return self._values() == other._values() if type(other) is type(self) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._values())

    @reprlib.recursive_repr()
    def __repr__(self) -> str:
        shown = [f"{one.name}={getattr(self, one.name)!r}" for one in fields(self) if one.repr]
        return f"{type(self).__qualname__}({', '.join(shown)})"
