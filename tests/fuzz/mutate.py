"""Mutations of bytes, of frames, and of the fields of a protobuf body. All randomness is the given generator's."""

from random import Random
from typing import NamedTuple

VARINT, FIXED64, BYTES, GROUP, GROUP_END, FIXED32 = range(6)

INTERESTING = (
    *(0, 1, 2, 7, 8, 15, 16, 127, 128, 255, 256, 1023, 1024, 1025, 65535, 65536, 65537),
    *((1 << bits) + add for bits in (20, 22, 23, 30, 31, 32, 53, 62, 63, 64) for add in (-1, 0, 1)),
)
"""Numbers around which bounds lie."""

MOST_BYTES = 70_000
"""No mutation is longer: a little more than a frame may be."""


# --- bytes


def damaged(rng: Random, data: bytes, other: bytes) -> bytes:
    """Change some bytes of `data`, a few times; `other` is what it may be spliced with."""
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        data = rng.choice(_DAMAGES)(rng, data, other)
    return data[:MOST_BYTES]


def _flip_bits(rng: Random, data: bytes, _: bytes) -> bytes:
    changed = bytearray(data)
    for _time in range(rng.choice((1, 1, 2, 4))):
        if changed:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _set_byte(rng: Random, data: bytes, _: bytes) -> bytes:
    changed = bytearray(data)
    if changed:
        changed[rng.randrange(len(changed))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    return bytes(changed)


def _truncate(rng: Random, data: bytes, _: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _drop(rng: Random, data: bytes, _: bytes) -> bytes:
    first = rng.randrange(len(data) + 1)
    return data[:first] + data[first + rng.choice((1, 2, 4, 16, 100)) :]


def _duplicate(rng: Random, data: bytes, _: bytes) -> bytes:
    first = rng.randrange(len(data) + 1)
    part = data[first : first + rng.choice((1, 2, 4, 16, 100, 1000))]
    return data[:first] + part * rng.choice((2, 2, 3, 10)) + data[first + len(part) :]


def _insert(rng: Random, data: bytes, _: bytes) -> bytes:
    first = rng.randrange(len(data) + 1)
    return data[:first] + rng.randbytes(rng.choice((1, 2, 4, 11, 100))) + data[first:]


def _splice(rng: Random, data: bytes, other: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other) + 1) :]


def _append(rng: Random, data: bytes, other: bytes) -> bytes:
    return data + rng.choice((other, data, rng.randbytes(20)))


def _random(rng: Random, _data: bytes, _other: bytes) -> bytes:
    return rng.randbytes(rng.choice((0, 1, 4, 11, 12, 13, 40, 200)))


_DAMAGES = (_flip_bits, _flip_bits, _set_byte, _truncate, _drop, _duplicate, _insert, _splice, _append, _random)


# --- fields


class Field(NamedTuple):
    """One field of a protobuf message; `content` is a number, bytes, or the fields of a message inside."""

    number: int
    kind: int
    content: "int | bytes | list[Field]"


def parse(data: bytes, depth: int = 0) -> list[Field] | None:
    """Take a message apart; None where it is none."""
    fields: list[Field] = []
    at = 0
    while at < len(data):
        tag, at = _read_varint(data, at)
        if at < 0 or not tag >> 3:
            return None
        number, kind = tag >> 3, tag & 7
        if kind == VARINT:
            value, at = _read_varint(data, at)
            if at < 0:
                return None
            fields.append(Field(number, kind, value))
        elif kind == BYTES:
            length, at = _read_varint(data, at)
            if at < 0 or at + length > len(data):
                return None
            content = data[at : at + length]
            inner = parse(content, depth + 1) if content and depth < 5 else None
            fields.append(Field(number, kind, content if inner is None else inner))
            at += length
        else:
            return None
    return fields


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """Return a number and where it ends; -1 where it does not."""
    value = shift = 0
    while at < len(data) and shift < 70:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
    return 0, -1


def varint(value: int, padding: int = 0) -> bytes:
    """Write a number, with `padding` bytes more than it needs."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    for _ in range(padding):
        out[-1] |= 0x80
        out.append(0)
    return bytes(out)


def assemble(fields: list[Field], rng: Random | None = None) -> bytes:
    """Put a message together; with a generator, some lengths lie, and some numbers are longer than they need to be."""
    out = bytearray()
    for number, kind, content in fields:
        out += varint(number << 3 | kind)
        lies = rng is not None and rng.random() < 0.05
        if isinstance(content, int):
            out += varint(content, rng.randrange(12) if lies and rng else 0)
            continue
        inner = content if isinstance(content, bytes) else assemble(content, rng)
        if kind != BYTES:
            out += inner
            continue
        length = len(inner)
        if lies and rng:
            length = rng.choice((length - 1, length + 1, 0, *INTERESTING)) % (1 << 64)
        out += varint(length) + inner
    return bytes(out)


def changed(rng: Random, body: bytes, other: bytes) -> bytes:
    """Change some fields of a body and put it together again, so that most of it still means something."""
    fields, others = parse(body), parse(other)
    if fields is None or others is None:
        return damaged(rng, body, other)
    for _ in range(rng.choice((1, 1, 2, 4))):
        fields = _changed_somewhere(rng, fields, others)
    return assemble(fields, rng)[:MOST_BYTES]


def _changed_somewhere(rng: Random, fields: list[Field], others: list[Field]) -> list[Field]:
    """Change one field of this message, or of one inside it."""
    at = rng.randrange(len(fields)) if fields else 0
    if fields and isinstance(fields[at].content, list) and rng.random() < 0.8:
        inner = _changed_somewhere(rng, fields[at].content, others)  # type: ignore[arg-type]
        return [*fields[:at], fields[at]._replace(content=inner), *fields[at + 1 :]]
    return rng.choice(_CHANGES)(rng, list(fields), at, others)


def _value(rng: Random, fields: list[Field], at: int, _: list[Field]) -> list[Field]:
    if fields:
        fields[at] = _another(rng, fields[at])
    return fields


def _another(rng: Random, field: Field) -> Field:
    if field.kind == VARINT:
        near = field.content + rng.choice((-1, 1, 8)) if isinstance(field.content, int) else 0
        return field._replace(content=rng.choice((near, rng.choice(INTERESTING), rng.getrandbits(64))) % (1 << 70))
    content = field.content if isinstance(field.content, bytes) else assemble(field.content)  # type: ignore[arg-type]
    length = rng.choice((0, 1, len(content) - 1, len(content) + 1, 15, 16, 17, 31, 32, 33, 255, 256, 4096, 4097))
    resized = (content * (length // len(content) + 1) if content else bytes(max(0, length)))[: max(0, length)]
    return field._replace(content=rng.choice((resized, damaged(rng, content, b""), rng.randbytes(len(content)))))


def _remove(_rng: Random, fields: list[Field], at: int, _: list[Field]) -> list[Field]:
    del fields[at : at + 1]
    return fields


def _repeat(rng: Random, fields: list[Field], at: int, _: list[Field]) -> list[Field]:
    times = rng.choice((1, 1, 2, 5, 1025)) if fields and len(assemble(fields)) < 200 else 1
    return fields[: at + 1] + fields[at : at + 1] * times + fields[at + 1 :]


def _shuffle(rng: Random, fields: list[Field], _at: int, _: list[Field]) -> list[Field]:
    rng.shuffle(fields)
    return fields


def _renumber(rng: Random, fields: list[Field], at: int, _: list[Field]) -> list[Field]:
    if fields:
        number = rng.choice((1, 2, 3, 4, 5, 6, 16, 17, 32, 33, 48, 49, 1000, (1 << 29) - 1, 1 << 29))
        fields[at] = fields[at]._replace(number=number)
    return fields


def _retype(rng: Random, fields: list[Field], at: int, _: list[Field]) -> list[Field]:
    if fields:
        fields[at] = fields[at]._replace(kind=rng.choice((VARINT, FIXED64, BYTES, GROUP, GROUP_END, FIXED32, 6, 7)))
        if fields[at].kind == VARINT and not isinstance(fields[at].content, int):
            fields[at] = fields[at]._replace(content=rng.getrandbits(64))
        elif fields[at].kind != VARINT and isinstance(fields[at].content, int):
            fields[at] = fields[at]._replace(content=rng.randbytes(rng.choice((0, 4, 8))))
    return fields


def _unknown(rng: Random, fields: list[Field], at: int, _: list[Field]) -> list[Field]:
    """Put in a field that no schema has: it is to be ignored."""
    number = rng.choice((7, 40, 99, 1000, 536_870_911))
    content: int | bytes = rng.choice((rng.getrandbits(64), rng.randbytes(rng.choice((0, 3, 300)))))
    field = Field(number, VARINT if isinstance(content, int) else BYTES, content)
    return [*fields[:at], field, *fields[at:]]


def _deep(rng: Random, fields: list[Field], at: int, _: list[Field]) -> list[Field]:
    """Put in messages, or groups, inside of each other."""
    depth = rng.choice((5, 50, 99, 100, 101, 1000, 10_000))
    number = rng.choice((1, 2, 7, 17, 40))
    if rng.random() < 0.5:
        ends = rng.choice((depth, depth - 1, 0))
        content = varint(number << 3 | GROUP) * depth + varint(number << 3 | GROUP_END) * ends
        return [*fields[:at], Field(number, GROUP, content), *fields[at:]]
    content = b""
    for _level in range(min(depth, 500)):
        content = varint(number << 3 | BYTES) + varint(len(content)) + content
    return [*fields[:at], Field(number, BYTES, content), *fields[at:]]


def _foreign(rng: Random, fields: list[Field], at: int, others: list[Field]) -> list[Field]:
    """Put in a field of another message, of any depth."""
    taken: list[Field] = others
    for _ in range(3):
        if taken and isinstance(deeper := rng.choice(taken).content, list) and rng.random() < 0.7:
            taken = deeper
    return [*fields[:at], *([rng.choice(taken)] if taken else []), *fields[at:]]


_CHANGES = (_value, _value, _value, _value, _remove, _repeat, _shuffle, _renumber, _retype, _unknown, _deep, _foreign)
