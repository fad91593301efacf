"""Senders whose file names lead out of the destination, into staging, or nowhere: refused, and nothing is written."""

import os
import signal
from pathlib import Path

from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.errors import Code
from tests.support.attacks import unharmed
from tests.support.peer import RawSender, Sample
from tests.support.services import HANG, Pair, Service, tree


def check_untouched(pair: Pair, receiver: Service) -> None:
    """Check that the destination is as empty as before, and that the receiver still serves."""
    assert pair.received() == []
    unharmed(receiver)


HOSTILE_NAMES = {
    "dot dot": b"..",
    "dot": b".",
    "up": b"../evil",
    "up and up": b"../../../../../../../../tmp/evil",
    "up in the middle": b"a/../../evil",
    "up at the end": b"a/..",
    "root": b"/",
    "absolute": b"/tmp/evil",
    "end of string": b"evil\0",
    "end of string inside": b"evil\0.txt",
    "staging": b".filestreamer",
    "into staging": b".filestreamer/token",
    "staging below": b"a/.filestreamer",
    "300 bytes": b"x" * 300,
    "256 bytes": b"x" * 256,
    "empty component": b"a//b",
    "ends with a slash": b"a/",
}


def places(pair: Pair, root: Path) -> list[object]:
    """Everything that hostile names could lead to, logs aside."""
    return [tree(pair.source), tree(pair.destination), sorted(os.listdir(root)), Path("/tmp/evil").exists()]


def test_hostile_names(pair: Pair, tmp_path: Path) -> None:
    """Refused with PATH; nothing is written, wherever the name leads."""
    receiver = pair.receiver("--once")
    address = pair.address(receiver)
    before = places(pair, tmp_path)
    codes = {}
    for what, name in {**HOSTILE_NAMES, "absolute here": os.fsencode(tmp_path / "evil")}.items():
        sample = Sample(name, b"evil content", 4)
        with RawSender(address) as peer:
            codes[what] = peer.offers(sample.offer, m.ManifestPart(0, (sample.entry,), True)).code
    assert {what: code for what, code in codes.items() if code is not Code.PATH} == {}
    assert before == places(pair, tmp_path)
    assert "Traceback" not in receiver.stderr
    pair.sender(pair.file("f", 10), address).succeeds()
    assert receiver.wait() == 0
    assert pair.received() == ["f"]


def test_hostile_names_where_they_are_not_used(pair: Pair, tmp_path: Path) -> None:
    """With --output-file a name may be refused or ignored; it leads nowhere either way."""
    receiver = pair.start("receiver", "--listen", "127.0.0.1:0", "--output-file", pair.destination / "out")
    address = pair.address(receiver)
    before = places(pair, tmp_path)
    for name in HOSTILE_NAMES.values():
        sample = Sample(name, b"evil content", 4)
        with RawSender(address) as peer:
            control = peer.offer(sample)
            answer = control.expect(tuple)
            assert isinstance(answer, m.Needed) or (isinstance(answer, m.Abort) and answer.code is Code.PATH)
            control.send(m.Abort(Code.SHUTTING_DOWN, "enough"))
            control.end_writing()
            control.ends()
    now = places(pair, tmp_path)
    now[1] = {path: size for path, size in tree(pair.destination).items() if not path.startswith(".filestreamer")}
    assert before == now
    pair.sender(pair.file("f", 10), address).succeeds()
    assert receiver.wait() == 0
    assert pair.received() == ["out"]


def test_name_that_is_too_long_for_a_frame_field(pair: Pair) -> None:
    receiver = pair.receiver()
    with RawSender(pair.address(receiver)) as peer:
        sample = Sample(b"x" * (limits.PATH_BYTES + 1), b"content", 4)
        abort = peer.offers(sample.offer, m.ManifestPart(0, (sample.entry,), True))
    assert abort.code in (Code.PATH, Code.PROTOCOL)
    check_untouched(pair, receiver)


def test_hostile_name_from_the_real_sender(pair: Pair) -> None:
    """What a user of the real sender sees of it: exit 3, and why."""
    receiver = pair.receiver()
    message = pair.sender(pair.file("f", 10), pair.address(receiver), "--as", ".filestreamer").fails(
        3, "path", status="refused"
    )
    assert ".filestreamer" in message
    check_untouched(pair, receiver)
    receiver.signal(signal.SIGTERM)
    assert receiver.wait(HANG) == 143
