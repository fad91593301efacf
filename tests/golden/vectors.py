"""The golden vectors: bytes as they are on the wire, beside what they mean (proto/README.md, "Golden vectors").

In the files bytes are hex, an enum is the name of its member, a tuple is a list, an absent value is null. `native` and
`plain` go between that and the messages of `filestreamer.wire.messages`. In hex, `(0a01)*3` stands for `0a010a010a01`.
"""

import enum
import json
import re
import types
import typing
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from filestreamer.wire import messages as m

GOLDEN = Path(__file__).parent
MESSAGES: dict[str, type] = {kind.__name__: kind for kind in get_args(m.Message)}


def load(name: str) -> Any:
    """Read one golden file."""
    return json.loads((GOLDEN / name).read_text())


def packed(data: bytes) -> str:
    """Write bytes as hex, a long run of the same few bytes as `(unit)*times`."""
    out, at = [], 0
    for run in re.finditer(rb"(.{1,48}?)\1{63,}", data, re.DOTALL):
        out += [data[at : run.start()].hex(), f"({run[1].hex()})*{len(run[0]) // len(run[1])} "]
        at = run.end()
    return "".join([*out, data[at:].hex()]).rstrip()


def unpacked(text: str) -> bytes:
    """Read what `packed` wrote."""
    return bytes.fromhex(re.sub(r"\(([0-9a-f]+)\)\*(\d+)", lambda run: run[1] * int(run[2]), text))


def message_of(kind: str, fields: dict[str, Any]) -> m.Message:
    """Make the message `kind` of what a golden file says of its fields."""
    return typing.cast(m.Message, native(MESSAGES[kind], fields))


def fields_of(message: m.Message) -> Any:
    """Say what a golden file says of a message's fields."""
    return plain(message)


def plain(value: Any) -> Any:
    """Turn a native value into what JSON can hold."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: plain(field) for name, field in value._asdict().items() if name != "reserved"}
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return value


def native(kind: Any, value: Any) -> Any:
    """Turn what JSON holds back into a value of the type `kind`."""
    if get_origin(kind) is types.UnionType:
        (kind,) = (option for option in get_args(kind) if option is not types.NoneType)
        return None if value is None else native(kind, value)
    if get_origin(kind) is tuple:
        return tuple(native(get_args(kind)[0], item) for item in value)
    if kind is bytes:
        return bytes.fromhex(value)
    if issubclass(kind, enum.Enum):
        return kind[value]
    if issubclass(kind, tuple):
        hints = get_type_hints(kind)
        return kind(**{name: native(hints[name], field) for name, field in value.items()})
    return value
