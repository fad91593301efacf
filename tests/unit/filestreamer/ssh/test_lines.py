"""What both sides say to each other: whatever comes is read, or refused in clear words."""

import json
import os
from typing import Any

import pytest

from filestreamer.ssh import lines
from filestreamer.wire.errors import FarSideFailed

KNOWN: dict[str, lines.Types] = {"directory": str, "seconds": (float, int, type(None)), "tls": bool}
ANSWER = lines.Answer("s" * 32, "192.0.2.1", 7801, bytes(range(32)), 7802, "m")


@pytest.mark.parametrize("name", [b"a b", b"\xff\xfe", b'it\'s\n"x"\\', "äöü€".encode(), b"", b"-", b"\x1b[2J"])
def test_a_path_is_the_same_on_both_sides(name: bytes) -> None:
    line = lines.request("receiver", directory=lines.path_to_json(os.fsdecode(name)), seconds=None, tls=True)
    assert line.isascii()
    assert line.count(b"\n") == 1
    asked = lines.read_request(line, "receiver", KNOWN)
    assert os.fsencode(lines.path_from_json(asked["directory"])) == name


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"form": 2}, "the two versions do not go together"),
        ({"form": "1"}, "the two versions do not go together"),
        ({"task": "sender"}, "this is receiver, and not 'sender'"),
        ({"more": 1}, "'more' is not known here"),
        ({"tls": 1}, "'tls' is missing, or wrong"),
        ({"seconds": True}, "'seconds' is missing, or wrong"),
        ({"directory": None}, "'directory' is missing, or wrong"),
    ],
)
def test_a_request_that_is_not_understood(change: dict[str, Any], said: str) -> None:
    content = json.loads(lines.request("receiver", directory="x", seconds=1.5, tls=True))
    content["filestreamer"] |= change
    with pytest.raises(FarSideFailed, match=said):
        lines.read_request(json.dumps(content).encode(), "receiver", KNOWN)


@pytest.mark.parametrize(
    "line", [b"", b"{}", b"[]", b'{"filestreamer":[]}', b"\xff", b"[" * 100_000, b'{"filestreamer":{}']
)
def test_a_line_that_is_no_request(line: bytes) -> None:
    with pytest.raises(FarSideFailed, match="this is no request"):
        lines.read_request(line, "receiver", KNOWN)


def test_answers() -> None:
    line = lines.answer(ANSWER)
    assert line.startswith(b"\n" + lines.PREFIX)
    assert lines.read_answer(line.strip(), "nas") == ANSWER
    local = ANSWER._replace(address="fe80::1%enp0s3", sha256=b"")
    assert lines.read_answer(lines.answer(local).strip(), "nas") == local
    assert lines.read_answer(lines.held("abc").strip(), "nas") == "abc"
    failed = lines.failure(FarSideFailed("no \x1b[2J", exit_code=4, name="destination"))
    with pytest.raises(FarSideFailed, match=r"nas: no \\x1b\[2J") as caught:
        lines.read_answer(failed.strip(), "nas")
    assert (caught.value.exit_code, caught.value.name) == (4, "destination")


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"form": 1},
        {"form": 2, "session": "s"},
        {"form": 1, **ANSWER._asdict(), "sha256": "zz"},
        {"form": 1, **ANSWER._asdict(), "sha256": "00", "port": "7801"},
        {"form": 1, **ANSWER._asdict(), "sha256": "00", "port": True},
        *[
            {"form": 1, **ANSWER._asdict(), "sha256": "", "address": each}
            for each in ("", "nas", "$(id)", "::1%a b", "-x")
        ],
        {"form": 1, **ANSWER._asdict(), "sha256": "", "port": 65536},
        {"form": 1, **ANSWER._asdict(), "sha256": "", "tunnel_port": 0},
        {"error": []},
        {"error": {"message": "x", "exit_code": "4", "name": None}},
        {"error": {"message": 1}},
    ],
)
def test_an_answer_that_is_not_understood(content: dict[str, Any]) -> None:
    with pytest.raises(FarSideFailed, match="nas: ") as caught:
        lines.read_answer(lines.encode(content), "nas")
    assert caught.value.exit_code in range(1, 6)


def test_markers() -> None:
    assert lines.read_marker(lines.marker("abc").strip()) == "abc"
    assert lines.read_marker(b'{"filestreamer":{"tunnel":1}}') is None
    assert lines.read_marker(b'{"filestreamer":') is None
