"""A tree at the receiver, without sockets: the steps of the sender are those of a test."""

import errno
import os
import queue
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from filestreamer.process import log
from filestreamer.telemetry.counters import TransferCounters
from filestreamer.wire import messages as m
from filestreamer.wire.codec import encode
from filestreamer.wire.digests import segment_digest
from filestreamer.wire.errors import Code, FilestreamerError, RemoteProtocolError, TransferFailed
from filestreamer.wire.limits import DIGEST_BYTES
from receiver.disk.destination import Destination
from receiver.disk.report import Report
from receiver.disk.staging.lock import TreeLock
from receiver.file.rehash import FinalsRehashed, Rehashed, Rehasher
from receiver.file.target import IncomingRun
from receiver.memory.budget import Budget
from receiver.tree.top_level_names import TopLevelNames
from receiver.tree.tree_target import TreeTarget
from tests.support.peer import TreeSample
from tests.support.services import HANG

C = 64
"""The chunk size, in bytes."""
MTIME = 1_700_000_000_000_000_000


def told(report: Report) -> tuple[list[m.DeclinedEntry], list[str]]:
    """Return what was reported since the last call: entries, and warnings."""
    messages = list(report.messages())
    entries = [entry for message in messages if isinstance(message, m.Declined) for entry in message.entries]
    return entries, [text for message in messages if isinstance(message, m.Notice) for text in message.texts]


class Connection:
    """A data connection, as far as a tree uses it."""

    connection_id = 0

    def __init__(self, transfer: "TreeTransfer") -> None:
        self._transfer = transfer
        self.was_stopped = self.is_ended = False

    def acknowledge(self) -> None:
        """Nothing waits to be acknowledged."""

    def stop(self, seconds: float) -> bool:
        """Take back what it was writing, as a connection does that ends."""
        assert seconds > 0
        self.was_stopped = True
        self._transfer.tree.chunks.detach(self)
        return True


class TreeTransfer:
    """A transfer of a tree: each step of the sender is a call of the test."""

    def __init__(
        self,
        path: Path,
        sample: TreeSample,
        *,
        replace: bool = True,
        allow_privileged: bool = False,
        memory_bytes: int = 1 << 30,
    ) -> None:
        self.sample = sample
        self.counters = TransferCounters(bytes(16), "", m.RECEIVER_STAGES)
        self.failures: list[FilestreamerError] = []
        self.claimed: list[bytes] = []
        self.nudges = 0
        self.warnings: list[str] = []
        self.declined_ids: list[int] = []
        self.report = Report(self._nudge)
        self._rehashed: queue.Queue[Rehashed | FinalsRehashed] = queue.Queue()
        self._rehasher = Rehasher(self._rehashed.put, self.failures.append)
        self.destination = Destination(str(path), replace=replace, allow_privileged=allow_privileged)
        self.top_level_names = TopLevelNames(self.destination, self._claim)
        self._account = Budget(memory_bytes).admit("somebody", 1 << 20)
        self.tree = self.another(sample)
        self.connection = Connection(self)

    def another(self, sample: TreeSample) -> TreeTarget:
        """Begin to receive a tree into this destination."""
        return TreeTarget(
            sample.offer,
            self.top_level_names,
            root=sample.entries[0].path.split(b"/")[0],
            job="job",
            account=self._account,
            counters=self.counters,
            rehasher=self._rehasher,
            failed=self.failures.append,
            nudge=self._nudge,
            report=self.report,
            log=log.configure("receiver"),
        )

    def _claim(self, name: bytes) -> None:
        self.claimed.append(name)
        self.top_level_names.take(name)

    def _nudge(self) -> None:
        self.nudges += 1

    def offer(self, *parts: m.ManifestPart) -> list[m.Message]:
        """List these parts, or all parts; return the answers."""
        return [answer for part in parts or self.sample.parts for answer in self.tree.take_part(part, encode(part))]

    def rehashed(self) -> list[m.Message]:
        """Wait for a batch that was re-hashed; return the answers."""
        return list(self.tree.take_rehashed(self._rehashed.get(timeout=HANG)))

    def begin(self, *segments: m.Segment, connection: Connection | None = None) -> list[Any]:
        """Begin a chunk."""
        begun = self.tree.chunks.begin_chunk(connection or self.connection, m.ChunkHeader(0, segments))
        assert not isinstance(begun, IncomingRun)
        return begun

    def send(
        self,
        *segments: m.Segment,
        connection: Connection | None = None,
        change: Callable[[bytes], bytes] = bytes,
        digest: bytes | None = None,
    ) -> bool:
        """Send a chunk, in blocks of half a segment; whether it is acknowledged with OK."""
        begun = self.begin(*segments, connection=connection)
        payloads = [change(self.sample.payload(segment)) for segment in segments]
        for each, payload in zip(begun, payloads, strict=True):
            if each.segment.runs:
                each.sink.begin_sparse(each.segment)
                for start, end, is_data in each.segment.pieces():
                    if is_data:
                        each.sink.write(memoryview(payload)[start - each.segment.offset :][: end - start], start)
                continue
            half = -(-len(payload) // 2)
            for at in range(0, len(payload), half):
                if each.write:
                    each.sink.write(memoryview(payload)[at : at + half], each.segment.offset + at)
        told = [digest or segment_digest(self.sample.payload(segment)) for segment in segments]
        computed = [segment_digest(payload) for payload in payloads]
        good = all(self.tree.chunks.end_chunk(connection or self.connection, begun, told, computed))
        for each, said in zip(begun, told, strict=True):
            if good and each.write and each.ledger is not None:
                each.ledger.record([(each.position, said)])
        return good

    def send_all(self) -> None:
        """Send every chunk that is to be sent, and tell those of zeros."""
        if zeros := self.sample.zeros.segments:
            assert list(self.tree.take_zeros(m.Zeros(zeros))) == [m.Zeros(zeros)]
        for segments in self.sample.chunks().values():
            assert self.send(*segments)

    def finish(self) -> None:
        """Say Finish, and commit."""
        assert list(self.tree.missing()) == []
        self.tree.finish(self.sample.finish)
        step = self.tree.next_step()
        assert callable(step)
        step()
        assert m.Complete(True) == self.tree.next_step()

    def fail_to_commit(self, code: Code) -> str:
        """Say Finish, and return the reason with which the commit fails, with this code."""
        self.tree.finish(self.sample.finish)
        step = self.tree.next_step()
        assert callable(step)
        return failure(code, step)

    def declined(self) -> dict[str, tuple[m.SkipKind, str]]:
        """Return what was reported of entries since the last call: kind and reason by path; keep the warnings."""
        entries, warnings = told(self.report)
        self.warnings += warnings
        assert len({entry.file_id for entry in entries}) == len(entries)
        self.declined_ids += [entry.file_id for entry in entries]
        return {os.fsdecode(entry.path): (entry.kind, entry.reason) for entry in entries}

    def withdraw_declined(self) -> dict[str, tuple[m.SkipKind, str]]:
        """Do as a sender that got nothing but Declined yet: withdraw the declined files that have bytes."""
        told = self.declined()
        files = self.sample.with_segments & set(self.declined_ids) - self.sample.withdrawn
        self.sample.withdrawn |= files
        if files:
            self.tree.withdraw(sorted(files))
        return told

    def close(self) -> None:
        """End the transfer, however far it came."""
        self.tree.stop_writes()
        assert self._rehasher.stop(HANG)
        self.tree.close(cleanly=True)
        self.destination.close()

    def move(self) -> list[m.Message]:
        """Receive the whole tree; return the answers."""
        answers = self.offer()
        self.send_all()
        self.finish()
        return answers


TransferOf = Callable[..., TreeTransfer]
"""What the fixture `transfer_of` is."""


def sample(**more: Any) -> TreeSample:
    """Return a tree with nothing but its root yet."""
    made = TreeSample(C, **more)
    made.directory(b"t", mtime_ns=MTIME)
    return made


def sample_of(other: TreeSample) -> TreeSample:
    """Return the same tree once more."""
    again = TreeSample(C)
    again.entries, again.contents = list(other.entries), list(other.contents)
    return again


def two_large_files(size: int) -> TreeSample:
    """Return a tree with two files, t/a and t/b, of so many bytes."""
    made = sample()
    made.add(b"t/a", b"a" * size)
    made.add(b"t/b", b"b" * size)
    return made


def failure(code: Code, run: Callable[..., object], *args: Any) -> str:
    """Run this, which fails with this code; return the reason."""
    with pytest.raises((TransferFailed, RemoteProtocolError)) as caught:
        run(*args)
    assert code is caught.value.code, caught.value.reason
    return caught.value.reason


def fail_to_sync(_: int) -> None:
    """Stand for a sync of a disk that has lost a write."""
    raise OSError(errno.EIO, "Input/output error")


def needed(*file_ids: int) -> m.Needed:
    """Return the Needed for files that follow each other."""
    return m.Needed((m.FileRange(file_ids[0], len(file_ids)),), ())


def held(answers: list[m.Message]) -> dict[int, bytes]:
    """Return the digests that are told in these answers, by file ID: of a large file, those of its segments."""
    found: dict[int, bytes] = {}
    for answer in answers:
        if isinstance(answer, m.Held) and answer.files:
            ids = [file_id for first, count in answer.files for file_id in range(first, first + count)]
            assert len(answer.digests) == len(ids) * DIGEST_BYTES
            found |= {file_id: answer.digests[at * DIGEST_BYTES :][:DIGEST_BYTES] for at, file_id in enumerate(ids)}
        elif isinstance(answer, m.Held) and answer.digests:
            found[answer.file_id] = found.get(answer.file_id, b"") + answer.digests
    return found


def staged(path: Path) -> list[str]:
    """List the files in staging, but for the locks of trees."""
    files = [each for each in (path / ".filestreamer").rglob("*") if each.is_file()]
    return sorted(str(each.relative_to(path)) for each in files if each.name not in TreeLock.NAMES)
