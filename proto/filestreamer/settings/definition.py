"""One setting: its flag, environment variables, config key, default and help come from one definition."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple, TypeVar, cast

import click

from filestreamer.settings import values
from filestreamer.wire.session import Side

T = TypeVar("T")

PREFIX: Final = "FILESTREAMER_"


class Definition(NamedTuple):
    """One setting: how its value is read, its names, and its line in --help."""

    read: Callable[[Any], Any]
    help: str
    default: str | int | None = None
    required: bool = False
    flag: str = ""
    """`--chunk-size`; a name without dashes, such as `INPUT_FILE`, is a positional argument."""
    metavar: str | None = None
    literal: str | None = None
    """For a setting that names a file: the variable, without prefix, that may hold the content of the file instead."""
    multiple: bool = False
    """Whether it may be given several times: as a list in the config file, as one line each in a variable."""
    bare: str | None = None
    """The value of a flag that is given without one; None: it needs a value."""
    is_own: bool = False
    """Whether the shared key and the shared variable of this name are for the other service: then only the section of
    this service, and its own variable, count."""

    @property
    def key(self) -> str:
        """The key in the config file. The variable is a prefix and this in capitals."""
        return self.shown.removeprefix("--").replace("-", "_").lower()

    @property
    def shown(self) -> str:
        """The flag, as error messages show it."""
        return self.flag.removesuffix("...")

    def parameter(self, name: str) -> click.Parameter:
        """Return the click parameter of this setting; `name` is that of the field."""
        if not self.flag.startswith("--"):
            return click.Argument(
                [name],
                type=self.read,
                required=self.required,
                metavar=self.flag if self.required else f"[{self.flag}]",
                help=self.help,
                nargs=-1 if self.multiple else 1,
            )
        return click.Option(
            [name, self.flag],
            type=self.read,
            is_flag=True if self.read is bool else None if self.bare is None else False,
            help=self.help,
            metavar=self.metavar if self.bare is None else f"[{self.metavar}]",
            multiple=self.multiple,
            show_default=self.default not in (None, False),
            **({"required": True} if self.required else {"default": self.default}),
            **cast(dict[str, Any], {} if self.bare is None else {"flag_value": self.bare}),
        )

    def variables(self, service: Side) -> Iterator[tuple[str, type[str]]]:
        """Yield the variables of this setting, strongest first, each with the type that its value must have."""
        for prefix in (f"{PREFIX}{service.upper()}_", *(() if self.is_own else (PREFIX,))):
            yield f"{prefix}{self.key.upper()}", str
            if self.literal:
                yield f"{prefix}{self.literal}", values.Literally


def several(
    read: Callable[[Any], T], help: str, *, required: bool = False, flag: str = "", metavar: str | None = None
) -> tuple[T, ...]:
    """Define a setting that may be given several times, as a dataclass field: a tuple, () by default."""
    definition = Definition(read, help, None, required, flag, metavar, None, True)
    return cast(tuple[T, ...], dataclasses.field(default=(), metadata={"definition": definition}))


def setting(
    read: Callable[[Any], T],
    help: str,
    *,
    default: str | int | None = None,
    required: bool = False,
    flag: str = "",
    metavar: str | None = None,
    literal: str | None = None,
    bare: str | None = None,
    is_own: bool = False,
    is_secret: bool = False,
) -> T:
    """Define a setting, as the default of a dataclass field.

        chunk_size: int | None = setting(values.size(1, limits.CHUNK_SIZE_MAX), "Bytes in each chunk.", metavar="SIZE")

    `read=bool` makes it a flag without a value. `default` is written as a user would write it. `flag` is needed only
    where it differs from the field's name. `bare` is the value of the flag without one. With `is_own`, what both
    services share in a config file or the environment is not for this one. A setting with `is_secret` or `literal` does
    not appear in a repr.
    """
    definition = Definition(read, help, default, required, flag, metavar, literal, bare=bare, is_own=is_own)
    settings: dict[str, Any] = {"metadata": {"definition": definition}, "repr": not (is_secret or literal)}
    if not required:
        settings["default"] = None if default is None else read(default)
    return cast(T, dataclasses.field(**settings))


def definitions(settings: type[Any]) -> dict[str, Definition]:
    """Return the definitions of all settings of a service by field name."""
    found = {}
    for item in dataclasses.fields(settings):
        definition: Definition = item.metadata["definition"]
        found[item.name] = definition._replace(flag=definition.flag or f"--{item.name.replace('_', '-')}")
    return found
