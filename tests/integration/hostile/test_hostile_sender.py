"""Senders that break the protocol over openings and control: what they are answered, and that no other peer notices.

Raw senders against the real receiver; codes and answers are those of proto/README.md.
"""

import os
from collections.abc import Callable

import pytest

from filestreamer.wire import messages as m
from filestreamer.wire.digests import root_digest
from filestreamer.wire.errors import Code
from filestreamer.wire.opening import random_id
from tests.support import sending
from tests.support.attacks import TOKEN, WITH_TOKEN, Running, unharmed
from tests.support.exchange import complete, deliver, deliver_all, needs_all, nothing_final, offer_new
from tests.support.peer import RawSender, Sample
from tests.support.services import Pair, Service
from tests.support.waiting import until

KIB = 1024


# ---------------------------------------------------------------------------------------------------- a decent exchange


def test_a_decent_raw_sender(pair: Pair, receiver: Service, peer: RawSender, sample: Sample) -> None:
    """What the other tests deviate from; chunks in any order, over several connections."""
    control = offer_new(peer, sample)
    links = [peer.data(0), peer.data(3)]
    deliver(links[0], sample, (9, 1, 0, 7, 5))
    deliver(links[1], sample, (2, 8, 3, 6, 4))
    complete(control, links[0], sample, pair, delivered=range(10))
    receiver.wait_for("transfer_complete")
    assert pair.received() == ["sample.bin"]


# -------------------------------------------------------------------------------------------------------------- opening


def test_data_before_control(pair: Pair, peer: RawSender, sample: Sample) -> None:
    """UNKNOWN_TRANSFER, retryable; the same transfer may begin afterwards."""
    refusal = peer.refused(m.Role.DATA)
    assert (refusal.code, refusal.retryable) == (Code.UNKNOWN_TRANSFER, True)
    control = offer_new(peer, sample)
    complete(control, peer.data(), sample, pair)


def answer_to(peer: RawSender, *messages: m.Message) -> m.Refusal:
    """Connect, say this after the Greeting, and return the Refusal that is the last word."""
    link = peer.connect()
    link.expect(m.Greeting)
    link.send(*messages)
    refusal = link.expect(m.Refusal)
    link.end_writing()
    link.ends()
    return refusal


def test_hello_that_is_refused(pair: Pair, peer: RawSender) -> None:
    hello = peer.hello(m.Role.CONTROL)
    codes = {
        "another version": answer_to(peer, hello._replace(lowest_version=2, highest_version=2)).code,
        "no connections": answer_to(peer, hello._replace(connections=0)).code,
        "257 connections": answer_to(peer, hello._replace(connections=257)).code,
        "control with a number": answer_to(peer, hello._replace(connection_id=1)).code,
        "beyond its connections": answer_to(peer, hello._replace(role=m.Role.DATA, connection_id=4)).code,
        "short id": answer_to(peer, hello._replace(transfer_id=bytes(15))).code,
        "long nonce": answer_to(peer, hello._replace(nonce=bytes(17))).code,
        "Offer instead": answer_to(peer, m.Offer(KIB, None, False, 0)).code,
        "Proof instead": answer_to(peer, m.Proof(bytes(32))).code,
        "Welcome instead": answer_to(peer, m.Welcome(b"")).code,
    }
    assert codes == {what: Code.VERSION if what == "another version" else Code.PROTOCOL for what in codes}
    assert pair.received() == []


def test_connection_beyond_those_of_control(pair: Pair, peer: RawSender, sample: Sample) -> None:
    """Its own Hello announces more connections than control's did: refused, and the transfer goes on."""
    control = offer_new(peer, sample)
    hello = peer.hello(m.Role.DATA)._replace(connection_id=4, connections=5)
    assert answer_to(peer, hello).code is Code.PROTOCOL
    complete(control, peer.data(3), sample, pair)


def test_connections_that_differ(pair: Pair, peer: RawSender, sample: Sample) -> None:
    """`connections` is the same in every Hello of a transfer."""
    control = offer_new(peer, sample)
    assert answer_to(peer, peer.hello(m.Role.DATA)._replace(connections=5)).code is Code.PROTOCOL
    complete(control, peer.data(), sample, pair)


def test_foreign_transfer_ids(pair: Pair) -> None:
    """Who has the token, and guesses ids, finds no transfer to join; the one that runs notices nothing."""
    receiver = pair.receiver(env=WITH_TOKEN)
    address = pair.address(receiver)
    running = Running(pair, address, env=WITH_TOKEN)
    for guess in (bytes(16), b"\xff" * 16, *(random_id() for _ in range(100))):
        with RawSender(address, token=TOKEN) as peer:
            peer.transfer_id = guess
            refusal = peer.refused(m.Role.DATA)
            assert (refusal.code, refusal.retryable) == (Code.UNKNOWN_TRANSFER, True)
    running.arrives()
    unharmed(receiver)


# -------------------------------------------------------------------------------------------------------------- control


Cases = dict[str, Callable[[Sample], list[m.Message]]]


TOP = m.Entry(b"t", m.EntryType.DIRECTORY, 0, 0o755, 0)
INSIDE = m.Entry(b"t/f", m.EntryType.FILE, 10 * 1024, 0o644, 0)
KEPT = m.Entry(b"t/k", m.EntryType.KEPT, 0, 0o644, 0)
TREE = m.ManifestPart(0, (TOP, INSIDE, INSIDE._replace(path=b"t/small", size=5)), True)
BEGUN = m.ManifestPart(0, (TOP, INSIDE), False, (), True)
"""More attributes of the last entry are to follow."""
ATTRIBUTE = m.Xattr(b"user.a", b"b")


def one(sample: Sample) -> m.ManifestPart:
    return m.ManifestPart(0, (sample.entry,), True)


def attributes(sample: Sample, *parts: m.ManifestPart) -> list[m.Message]:
    """Offer a tree with attributes."""
    return [sample.offer._replace(xattrs=True), *parts]


def zeros(*ranges: tuple[int, int, int]) -> m.Zeros:
    return m.Zeros(tuple(m.SegmentRange(*each) for each in ranges))


CONTROL_NONSENSE: Cases = {
    "zeros before the manifest": lambda s: [s.offer, zeros((0, 0, 1))],
    "zeros of more than there is, a thousand times": lambda s: [
        s.offer,
        one(s),
        zeros(*[(0, 0, (1 << 23) - 1)] * 1024),
    ],
    "zeros of another file": lambda s: [s.offer, one(s), zeros((1, 0, 1))],
    "zeros far beyond": lambda s: [s.offer, TREE, zeros(((1 << 64) - 1, 0, 1))],
    "zeros of a directory": lambda s: [s.offer, TREE, zeros((0, 0, 1))],
    "zeros of a small file": lambda s: [s.offer, TREE, zeros((2, 0, 1))],
    "zeros beyond a file of a tree": lambda s: [s.offer, TREE, zeros((1, 9, 2))],
    "zeros in a dry run": lambda s: [s.offer._replace(dry_run=True), TREE, zeros((1, 0, 1))],
    "withdrawn in a dry run": lambda s: [s.offer._replace(dry_run=True), TREE, m.Withdrawn((1,))],
    "declined": lambda s: [s.offer, m.Declined((m.DeclinedEntry(0, m.SkipKind.DECLINED, "", b"f"),))],
    "a notice": lambda s: [s.offer, one(s), m.Notice(("x",))],
    "verdicts": lambda s: [s.offer, one(s), m.Verdicts((m.EntryVerdict(m.Standing.SAME, 0, 1),))],
    "attributes of no entry": lambda s: attributes(s, m.ManifestPart(0, (), True, (ATTRIBUTE,))),
    "attributes that do not go on": lambda s: attributes(s, BEGUN, m.ManifestPart(2, TREE.entries[2:], True)),
    "attributes of another entry": lambda s: attributes(s, BEGUN, m.ManifestPart(1, (), True, (ATTRIBUTE,))),
    "attributes without end": lambda s: attributes(
        s, BEGUN, *[m.ManifestPart(2, (), False, (m.Xattr(b"user.a", bytes(60_000)),), True)] * 20
    ),
    "more attributes that are not announced": lambda s: [s.offer, BEGUN, m.ManifestPart(2, (), True, (ATTRIBUTE,))],
    "kept where nothing is deleted": lambda s: [s.offer, m.ManifestPart(0, (TOP, KEPT), True)],
    "kept, with a size": lambda s: [s.offer, m.ManifestPart(0, (TOP, KEPT._replace(size=1)), True)],
    "attributes that are not announced": lambda s: [
        s.offer,
        m.ManifestPart(0, (s.entry._replace(xattrs=(m.Xattr(b"user.a", b"b"),)),), True),
    ],
    "manifest before offer": lambda s: [m.ManifestPart(0, (s.entry,), True)],
    "finish before offer": lambda s: [s.finish],
    "offer twice": lambda s: [s.offer, s.offer],
    "finish before manifest": lambda s: [s.offer, s.finish],
    "complete": lambda _: [m.Complete(True)],
    "needed": lambda s: [s.offer, m.Needed((), (m.SegmentRange(0, 0, 1),))],
    "chunk on control": lambda s: [m.ChunkHeader(0, (s.segment(0),))],
    "hello again": lambda _: [m.Hello(1, 1, bytes(16), m.Role.CONTROL, 0, 1, bytes(16))],
    "chunk size of 0": lambda s: [s.offer._replace(chunk_size=0)],
    "chunk size over 1 GiB": lambda s: [s.offer._replace(chunk_size=(1 << 30) + 1)],
    "too many chunks": lambda s: [
        s.offer._replace(chunk_size=1),
        m.ManifestPart(0, (s.entry._replace(size=1 << 24),), True),
    ],
    "size beyond all": lambda s: [s.offer, m.ManifestPart(0, (s.entry._replace(size=1 << 63),), True)],
    "mode with a file type": lambda s: [s.offer, m.ManifestPart(0, (s.entry._replace(mode=0o100644),), True)],
    "empty path": lambda s: [s.offer, m.ManifestPart(0, (s.entry._replace(path=b""),), True)],
    "file with a link target": lambda s: [s.offer, m.ManifestPart(0, (s.entry._replace(link_target=b"x"),), True)],
}


def codes_for(receiver: Service, cases: Cases, sample: Sample) -> dict[str, Code]:
    """Say each of these on a control connection of a transfer of its own; return the codes that end them."""
    codes = {}
    for what, make in cases.items():
        with RawSender(Pair.address(receiver)) as peer:
            codes[what] = peer.offers(*make(sample)).code
    return codes


def test_nonsense_on_control(pair: Pair, receiver: Service, sample: Sample) -> None:
    assert codes_for(receiver, CONTROL_NONSENSE, sample) == dict.fromkeys(CONTROL_NONSENSE, Code.PROTOCOL)
    # The directory may have been made before the nonsense was read; a staging is removed behind the answer.
    until(lambda: set(pair.received()) <= {"t"}, "something is left")
    assert not [path for path in pair.destination.rglob("*") if not path.is_dir()]


POLICY: Cases = {
    "stream in a tree": lambda s: [
        s.offer,
        m.ManifestPart(0, (s.entry, m.Entry(b"s", m.EntryType.STREAM, 0, 0o644, 0)), True),
    ],
}


def test_what_this_receiver_does_not_do(pair: Pair, receiver: Service, sample: Sample) -> None:
    """Refused when it is asked for; never left out silently."""
    assert codes_for(receiver, POLICY, sample) == dict.fromkeys(POLICY, Code.POLICY)
    until(lambda: pair.received() == [], "nothing is left")


@pytest.mark.parametrize("allowed", [False, True])
def test_an_owner_is_set_only_where_the_receiver_allows_it(pair: Pair, sample: Sample, *, allowed: bool) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may give files away")
    receiver = pair.receiver(*(("--allow-privileged",) if allowed else ()))
    with RawSender(pair.address(receiver)) as peer:
        control = peer.control()
        control.send(sample.offer, m.ManifestPart(0, (sample.entry._replace(uid=12345, gid=54321),), True))
        needs_all(control, sample)
        complete(control, peer.data(), sample, pair, told=() if allowed else (m.Declined,))
    status = (pair.destination / "sample.bin").stat()
    assert (status.st_uid, status.st_gid) == ((12345, 54321) if allowed else (0, 0))
    assert receiver.poll() is None


def test_any_mode_and_time(pair: Pair, receiver: Service) -> None:
    """Setuid and its like are dropped; a time that the file system can't keep is no reason to fail."""
    for mtime_ns in (-1, -(1 << 63), (1 << 63) - 1, 0):
        sample = Sample(b"f", b"content", KIB)
        with RawSender(Pair.address(receiver)) as peer:
            control = peer.control()
            entry = sample.entry._replace(mode=0o7777, mtime_ns=mtime_ns)
            control.send(sample.offer, m.ManifestPart(0, (entry,), True))
            needs_all(control, sample)
            complete(control, peer.data(), sample, pair, told=(m.Notice,))
            control.ends()
        status = (pair.destination / "f").stat()
        assert status.st_mode == 0o100777
        if abs(mtime_ns) < 1 << 32:
            assert mtime_ns == status.st_mtime_ns


def test_setuid_never_arrives(pair: Pair, receiver: Service) -> None:
    """Neither from a peer that says so, nor from a source that has it."""
    address = Pair.address(receiver)
    for mode in (0o4755, 0o2755, 0o1777, 0o7777, 0o6000):
        sample = Sample.random(8, 100, 50, b"%o" % mode)
        with RawSender(address) as peer:
            control = peer.control()
            control.send(sample.offer, m.ManifestPart(0, (sample.entry._replace(mode=mode),), True))
            needs_all(control, sample)
            complete(control, peer.data(), sample, pair, told=(m.Notice,) if mode & 0o6000 else ())
        assert oct((pair.destination / f"{mode:o}").stat().st_mode) == oct(0o100000 | mode & 0o777)
        file = pair.file(f"real {mode:o}", 10)
        file.chmod(mode | 0o400)
        sending.send(file, "--to", address)
        assert oct((pair.destination / file.name).stat().st_mode) == oct(0o100000 | (mode | 0o400) & 0o777)


# --------------------------------------------------------------------------------------------------------------- finish


def test_finish_before_all_is_there(pair: Pair, peer: RawSender, sample: Sample) -> None:
    control = offer_new(peer, sample)
    data = peer.data()
    deliver(data, sample, (0, 1, 4, 9))
    control.send(sample.finish)
    assert control.expect(m.Needed) == m.Needed((), (m.SegmentRange(0, 2, 2), m.SegmentRange(0, 5, 4)))
    nothing_final(pair)
    complete(control, data, sample, pair, delivered={0, 1, 4, 9})


@pytest.mark.parametrize("what", ["root digest", "chunks"])
def test_finish_that_is_wrong(pair: Pair, receiver: Service, peer: RawSender, sample: Sample, what: str) -> None:
    """DIGEST; nothing stands under the final name, and what was staged is discarded."""
    control, _ = deliver_all(peer, sample)
    finish = sample.finish
    control.send(finish._replace(chunks=11) if what == "chunks" else finish._replace(root_digest=bytes(16)))
    assert control.expect(m.Abort).code is Code.DIGEST
    control.close()
    (result,) = receiver.wait_for_results()
    assert (result["exit_code"], result["error"]["code"]) == (1, "digest")
    assert pair.received() == []


FINISH_NONSENSE: Cases = {
    "the size of a stream, for a file": lambda s: [s.offer, one(s), s.finish._replace(stream_bytes=1)],
    "the size of a stream, for a tree": lambda s: [s.offer, TREE, m.Finish(0, root_digest([]), 1)],
    "the digest of a walk, for a file": lambda s: [s.offer, one(s), s.finish._replace(walk_digest=bytes(16))],
    "the digest of a walk, for a tree": lambda s: [s.offer, TREE, m.Finish(0, root_digest([]), walk_digest=bytes(16))],
    "no digest of the walk, for a shard of a tree": lambda s: [
        s.offer._replace(shard=m.Shard(0, 2, tree=True)),
        m.ManifestPart(0, (), True),
        m.Finish(0, root_digest([])),
    ],
}


def test_finish_of_another_kind_of_manifest(pair: Pair, receiver: Service, sample: Sample) -> None:
    for what, make in FINISH_NONSENSE.items():
        with RawSender(Pair.address(receiver), job="j") as peer:
            assert peer.offers(*make(sample)).code is Code.PROTOCOL, what
    unharmed(receiver)


def test_empty_file(pair: Pair, peer: RawSender) -> None:
    sample = Sample(b"empty", b"", KIB)
    control = peer.offer(sample)
    control.send(m.Finish(0, root_digest([])))
    assert control.expect(m.Complete) == m.Complete(True)
    assert (pair.destination / "empty").read_bytes() == b""


# ------------------------------------------------------------------------------------- names that another sender writes


def test_taking_a_name_that_is_being_written(pair: Pair) -> None:
    """A second sender of the same name, however often it comes, is BUSY, and neither file is mixed with the other."""
    receiver = pair.receiver()
    address = pair.address(receiver)
    content = pair.file("content", 1 << 20).read_bytes()
    evil = Sample(b"running", b"evil content", 4)
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as stdin, os.fdopen(writing, "wb", buffering=0) as writer:
        running = pair.start("sender", "-", "--as", "running", "--to", address, "--chunk-size", "64KiB", stdin=stdin)
        writer.write(content)
        receiver.wait_for("transfer_started")
        for _ in range(20):
            with RawSender(address) as peer:
                assert peer.offers(evil.offer, m.ManifestPart(0, (evil.entry,), True)).code is Code.BUSY
        writer.write(b"and the rest")  # not before: it is being written while others want its name
    running.succeeds()
    assert (pair.destination / "running").read_bytes() == content + b"and the rest"
    unharmed(receiver)


def test_busy_until_the_first_is_gone(pair: Pair, receiver: Service, sample: Sample) -> None:
    """A second transfer of the same name is BUSY; if the first has no connection left, it ends with SUPERSEDED."""
    address = Pair.address(receiver)
    with RawSender(address) as first, RawSender(address) as second:
        control = offer_new(first, sample)
        abort = second.offers(sample.offer, m.ManifestPart(0, (sample.entry,), True))
        assert abort.code is Code.BUSY
        control.close()
        receiver.wait_for("control_lost")
        control = offer_new(second, sample)
        complete(control, second.data(), sample, pair)
