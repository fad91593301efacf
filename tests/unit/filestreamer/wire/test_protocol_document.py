"""proto/README.md says what the code does: its tables, schemas, bytes and references are compared with it."""

import contextlib
import enum
import re
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest

from filestreamer.wire import auth, features, limits
from filestreamer.wire import messages as m
from filestreamer.wire.errors import CONSEQUENCES, Code, RemoteProtocolError
from filestreamer.wire.grid import WHOLE, Grid
from filestreamer.wire.session import TABLE, State
from receiver.disk.staging.ledger import Claims
from receiver.file import states as state_numbers
from receiver.file.chunk_states import ChunkStates
from tests.golden.vectors import GOLDEN, MESSAGES, load

ROOT = Path(__file__).parents[4]
README = (ROOT / "proto" / "README.md").read_text()
PROTO = (ROOT / "proto" / "filestreamer" / "v1" / "wire.proto").read_text()

Table = list[list[str]]


# --- reading markdown


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


HEADINGS = re.findall(r"^#+ (.+)$", without_code(README), re.MULTILINE)


def section(title: str) -> str:
    """Return what stands under a heading, up to the next one of its level or above."""
    found = re.search(rf"^(#+) {re.escape(title)}$", README, re.MULTILINE)
    assert found, f"no section {title!r}"
    rest = README[found.end() :]
    end = re.search(rf"^#{{1,{len(found[1])}}} ", rest, re.MULTILINE)
    return rest[: end.start()] if end else rest


def own_text(title: str) -> str:
    """Return a section without its subsections."""
    return re.split(r"^#+ ", section(title), flags=re.MULTILINE)[0]


def tables(text: str) -> list[Table]:
    """Return the rows of each table of a text, without its head."""
    found = re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE)
    return [[[cell.strip() for cell in line.strip("|").split("|")] for line in t.splitlines()[2:]] for t in found]


def schemas(text: str) -> dict[str, list[str]]:
    """Return the messages and enums of a schema, each as its lines without comments."""
    code = re.sub(r"//.*", "", text)
    blocks = re.findall(r"^(?:message|enum) (\w+) \{\n(.*?)^\}", code, re.DOTALL | re.MULTILINE)
    return {name: [line.strip() for line in body.splitlines() if line.strip()] for name, body in blocks}


IN_PROTO = schemas(PROTO)
IN_README = schemas("\n".join(re.findall(r"^```proto\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)))
ENUMS: dict[str, type[enum.IntEnum]] = {
    "Role": m.Role,
    "Code": Code,
    "EntryType": m.EntryType,
    "Existing": m.Existing,
    "Standing": m.Standing,
    "Phase": m.Phase,
    "Verdict": m.Verdict,
    "SkipKind": m.SkipKind,
}
STRUCTS = [name for name in IN_PROTO if name not in ENUMS and name != "Frame"]


def fields_in_proto(name: str) -> list[str]:
    return [re.findall(r"(\w+) = \d+;", line)[0] for line in IN_PROTO[name] if not line.startswith("reserved")]


# --- schemas


def test_the_readme_repeats_the_whole_schema() -> None:
    """All but Code, which is a table."""
    assert {name: body for name, body in IN_PROTO.items() if name != "Code"} == IN_README


def test_every_kind_of_frame_is_a_native_message() -> None:
    kinds = re.findall(r"(\w+) \w+ = \d+;", "\n".join(IN_PROTO["Frame"]))

    assert sorted(kinds) == sorted(MESSAGES)


@pytest.mark.parametrize("name", STRUCTS)
def test_every_message_has_its_section(name: str) -> None:
    text = own_text(name)
    (rows,) = tables(text)
    documented = [field for first, *_ in rows for field in re.findall(r"`(\w+)`", first)]

    assert f"message {name} {{" in text
    assert documented == fields_in_proto(name)


@pytest.mark.parametrize("name", MESSAGES)
def test_every_message_is_described_in_the_same_form(name: str) -> None:
    parts = re.findall(r"^\*\*(Purpose|Sent by|Nonsense)\.?\*\*|^(```proto|\| field)", own_text(name), re.MULTILINE)

    assert ["".join(part) for part in parts] == ["Purpose", "Sent by", "```proto", "| field", "Nonsense"]


COLUMNS = {
    "path": "paths",
    "type": "types",
    "size": "sizes",
    "mode": "modes",
    "mtime_ns": "mtimes_ns",
    "uid": "uids",
    "gid": "gids",
}


def test_an_entry_has_the_columns_and_details_of_its_part() -> None:
    part, (index, *details) = fields_in_proto("ManifestPart"), fields_in_proto("EntryDetails")
    assert part == [
        field
        for native in m.ManifestPart._fields
        for field in ([*COLUMNS.values(), "details"] if native == "entries" else [native])
    ]
    assert (index, *COLUMNS, *details) == ("index", *m.Entry._fields)


@pytest.mark.parametrize("name", [name for name in STRUCTS if name not in ("ManifestPart", "EntryDetails")])
def test_native_messages_have_the_fields_of_the_schema(name: str) -> None:
    fields = [field for field in getattr(m, name)._fields if field != "reserved"]
    assert fields == fields_in_proto(name)


@pytest.mark.parametrize("name", ENUMS)
def test_native_enums_have_the_values_of_the_schema(name: str) -> None:
    prefix = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).upper()
    members = dict(re.findall(r"(\w+) = (\d+);", "\n".join(IN_PROTO[name])))
    native = {f"{prefix}_{member.name}": str(member.value) for member in ENUMS[name]}

    assert members == {f"{prefix}_UNSPECIFIED": "0", **native}


# --- tables


def test_codes() -> None:
    (rows,) = tables(section("Codes"))
    documented = [(code, int(number), retryable, int(exit_code)) for code, number, _, retryable, exit_code in rows]
    expected = [
        (code.name, int(code), "yes" if consequence.retryable else "no", int(consequence.exit_code))
        for code, consequence in CONSEQUENCES.items()
    ]

    assert documented == expected


def number(text: str) -> int:
    """Read a value of the limits table: `16`, `4 MiB`, `2^23`, `2^63 - 1`, `5 s`."""
    units = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "s": 1}
    found = re.fullmatch(r"(\d+)(?:\^(\d+))?(?: - (\d+))? ?(KiB|MiB|GiB|s|)", text)
    assert found, text
    value, power, less, unit = found.groups()
    result: int = (int(value) ** int(power or 1) - int(less or 0)) * units[unit]
    return result


def test_limits() -> None:
    (rows,) = tables(section("Limits"))
    unseen = ("VERSION", "KIB", "MIB", "GIB", "BLOCK_BYTES", "LARGE_BLOCK_BYTES", "LARGE_BLOCK_CONNECTIONS")
    names = [name for name in vars(limits) if name.isupper() and name not in unseen]

    assert {name: number(value) for name, value, _ in rows} == {name: getattr(limits, name) for name in names}
    assert [name for name, *_ in rows] == names


def test_seconds_are_called_seconds() -> None:
    (rows,) = tables(section("Limits"))

    assert [name for name, value, _ in rows if value.endswith(" s")] == [
        name for name, *_ in rows if name.endswith("_SECONDS")
    ]


def test_what_is_written_in_capitals_exists() -> None:
    members = {member.name for kind in ENUMS.values() for member in kind}
    known = {*vars(limits), *members, *re.findall(r"^\s*([A-Z_]+) = \d+;", PROTO, re.MULTILINE), "SHUT_WR"}

    assert set(re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b", README)) - known == set()


def test_sessions() -> None:
    """The session table is that of the code, cell by cell."""
    (rows,) = tables(section("Sessions"))
    assert {row[1] for row in rows} == {state for states in TABLE.values() for state in states}
    documented: dict[tuple[str, str, str, str], str] = {}
    for connection, state, *cells in rows:
        for side, cell in zip(("sender", "receiver"), cells, strict=True):
            for step in filter(None, cell.split(", ")):
                message, _, following = step.partition(" → ")
                documented[connection, state, side, message] = following or state
    # The one thing that the type of a message does not tell:
    assert documented.pop(("control", "manifest", "sender", "ManifestPart (last)")) == "moving"
    expected = {
        (role.name.lower(), state, side, kind.__name__): following
        for (side, role), states in TABLE.items()
        for state, steps in states.items()
        for kind, following in steps.items()
    }

    assert documented == expected


def test_states_are_named_in_the_text() -> None:
    for state in get_args(State):
        assert re.search(rf"\b{state}\b", section("Sessions")), state


RIGHT, WRONG = b"right digest 16B", b"wrong digest 16B"
STEPS: dict[str, Callable[[ChunkStates], object]] = {
    "a chunk arrives": lambda states: states.begin(0, Writer()),
    "it is right": lambda states: states.deliver(0, states.writer(0) or Writer(), RIGHT, RIGHT),
    "it is wrong": lambda states: states.deliver(0, states.writer(0) or Writer(), RIGHT, WRONG),
    "its connection ends": lambda states: states.detach(states.writer(0) or Writer()),
    "re-hashed, and as the ledger says": lambda states: states.rehashed(0, RIGHT),
    "re-hashed, and otherwise": lambda states: states.rehashed(0, WRONG),
    "it is told as zeros": lambda states: states.writer(0) or states.make_zero(WHOLE, 0, 1),
}


class Writer:
    """A connection that is writing."""

    def stop(self, seconds: float) -> bool:
        raise NotImplementedError


def put_into(state: str) -> ChunkStates:
    """Make a file of one chunk, in this state."""
    grid = Grid(8, 8)
    states = ChunkStates(grid, Claims.of(grid, [(0, RIGHT)] if state in ("CLAIMED", "HELD") else []))
    if state == "HELD":
        states.rehashed(0, RIGHT)
    if state in ("WRITING", "VERIFIED"):
        states.begin(0, Writer())
    if state == "VERIFIED":
        STEPS["it is right"](states)
    if state == "ZERO":
        states.make_zero(WHOLE, 0, 1)
    assert states.state(0) == getattr(state_numbers, state)
    return states


def followers(state: str) -> set[str]:
    """Return the states that follow this one by some step."""
    names = {getattr(state_numbers, name): name for name in CHUNK_STATES}
    found = set()
    for step in STEPS.values():
        states = put_into(state)
        with contextlib.suppress(RemoteProtocolError):
            step(states)
        found.add(names[states.state(0)])
    return found - {state}


CHUNK_STATES = ["FREE", "CLAIMED", "HELD", "WRITING", "VERIFIED", "ZERO"]


def test_chunk_states() -> None:
    """Whatever happens to a chunk, its state goes where the table says, and everywhere that the table says."""
    (rows,) = tables(section("Chunk states"))

    assert [row[0] for row in rows] == CHUNK_STATES
    assert {row[0]: set(re.findall(r"\b[A-Z]{4,}\b", row[3])) for row in rows} == {
        state: followers(state) for state in CHUNK_STATES
    }


def test_a_chunk_that_was_told_as_zeros_is_refused() -> None:
    with pytest.raises(RemoteProtocolError):
        put_into("ZERO").begin(0, Writer())


# --- bytes


def test_the_example_is_the_golden_exchange() -> None:
    (block,) = re.findall(r"^```text\n(.*?)^```$", section("Example exchange"), re.DOTALL | re.MULTILINE)
    steps: list[dict[str, str]] = []
    for line in block.splitlines():
        if line.startswith(" "):
            steps[-1]["wire"] += line.replace(" ", "")
        else:
            head = re.fullmatch(r"(control|data \d+) +(sender|receiver) -> (sender|receiver) +(.+)", line)
            assert head, line
            assert head[2] != head[3]
            steps.append({"connection": head[1], "from": head[2], "what": head[4], "wire": ""})

    assert steps == load("exchange.json")["steps"]


def test_the_example_says_what_it_is_about() -> None:
    exchange = load("exchange.json")
    text = section("Example exchange")

    assert f"`{exchange['token']}`" in text
    assert f"chunks of {exchange['chunk_size']} bytes" in text
    assert f"{len(exchange['content']) // 2} bytes" in text


def test_features() -> None:
    (rows,) = tables(section("Features"))

    assert tuple(name.strip("`") for name, _ in rows) == features.KNOWN


def test_the_labels_of_the_proofs() -> None:
    for label in (auth._SENDER, auth._RECEIVER):
        assert label.endswith(b"\0")
        assert f"`{label[:-1].decode()}` and one byte 0x00" in section("Proofs")


def test_every_golden_file_is_listed() -> None:
    (rows,) = tables(section("Golden vectors"))

    assert sorted(re.findall(r"\((.+?)\)", row[0])[0] for row in rows) == sorted(
        f"../tests/golden/{path.name}" for path in GOLDEN.glob("*.json")
    )


# --- references


def test_the_version() -> None:
    assert README.startswith(f"# The filestreamer protocol, version {limits.VERSION}\n")


def anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_links_lead_somewhere() -> None:
    anchors = {anchor(heading) for heading in HEADINGS}
    links = re.findall(r"\]\(([^)]+)\)", README)

    assert links
    for link in links:
        if link.startswith("#"):
            assert link[1:] in anchors, link
        else:
            assert (ROOT / "proto" / link).exists(), link


def test_headings_are_not_ambiguous() -> None:
    assert len(set(HEADINGS)) == len(HEADINGS)


def test_every_section_is_in_the_contents() -> None:
    contents = README[: README.index("## ")]

    for heading in re.findall(r"^## (.+)$", without_code(README), re.MULTILINE):
        assert f"(#{anchor(heading)})" in contents, heading


def references() -> list[tuple[str, str]]:
    """Find every section that the code refers to, as (file, section)."""
    found = []
    for directory in ("proto", "sender", "receiver", "tests"):
        for path in sorted((ROOT / directory).rglob("*.py")):
            for quoted in re.findall(r'proto/README\.md, ((?:"[^"]+"(?:,? and |, )?)+)', path.read_text()):
                found += [(str(path.relative_to(ROOT)), title) for title in re.findall(r'"([^"]+)"', quoted)]
    return found


def test_sections_that_the_code_refers_to_exist() -> None:
    assert references()
    assert [(path, title) for path, title in references() if title not in HEADINGS] == []
