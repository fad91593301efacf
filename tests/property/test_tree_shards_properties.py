"""Shards of any tree, in any number, that come, write, finish and are lost in any order: the tree is right at the end.

What is modelled is who has finished, and with which version of the source. Whatever happens on the way, also to what is
staged, a file under its final name is one version of it, whole; and the shard that says `committed` leaves all of it as
its source has it.
"""

import contextlib
import os
import random
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from filestreamer.wire import messages as m
from filestreamer.wire.errors import Code, TransferFailed
from filestreamer.wire.grid import Grid, Share
from filestreamer.wire.tree_shares import TreeShares, WalkDigest
from receiver.disk.staging.shared_names import SharedNames
from tests.support.peer import TreeSample
from tests.support.tree_receiver import MTIME, C, TreeTransfer, failure

PATHS = st.binary(min_size=1, max_size=3).map(bytes.hex).map(str.encode)
SIZES = st.sampled_from((0, 1, C - 1, C, C + 1, 2 * C, 5 * C + 7, 12 * C)) | st.integers(0, 6 * C)
TREES = st.dictionaries(PATHS, SIZES, min_size=1, max_size=8)


class Source(NamedTuple):
    """One version of a tree."""

    version: int
    contents: dict[bytes, bytes]
    mtimes: dict[bytes, int]

    def sample(self, share: Share) -> "ShardSample":
        """Return what a shard lists of it."""
        sample = ShardSample(share)
        for path, content in sorted(self.contents.items()):
            mtime_ns = self.mtimes[path]
            sample.walk.file(path, len(content), mtime_ns, is_linked=False)
            if sample.shares.has_file(path, len(content), is_linked=False):
                sample.add(path, content, mtime_ns=mtime_ns)
        return sample


class ShardSample(TreeSample):
    """What one shard lists of a tree, and sends of it."""

    def __init__(self, share: Share) -> None:
        super().__init__(C)
        self.shares = TreeShares(share, C, checksum=False)
        self.walk = WalkDigest(self.shares, C)
        self.directory(b"t", mtime_ns=MTIME)

    @property
    def offer(self) -> m.Offer:
        share = self.shares.shard
        return super().offer._replace(shard=m.Shard(share.index, share.count, tree=True))

    def is_sent(self, segment: m.Segment) -> bool:
        """Whether a segment is needed, and this shard's own."""
        share = self.shares.share_of(self.entries[segment.file_id])
        return share.holds(segment.offset // C) and super().is_sent(segment)

    @property
    def finish(self) -> m.Finish:
        return super().finish._replace(walk_digest=self.walk.digest())


class Live:
    """A shard that is under way."""

    def __init__(self, root: Path, sample: ShardSample, version: int, chance: random.Random) -> None:
        self.version = version
        self.transfer = TreeTransfer(root, sample)
        for answer in self.transfer.offer():
            if isinstance(answer, m.Held):
                sample.unchecked |= {each.first_file_id + at for each in answer.unchecked for at in range(each.files)}
        self.left = list(sample.chunks().values())
        chance.shuffle(self.left)

    def send(self) -> None:
        """Send the next chunk."""
        assert self.transfer.send(*self.left.pop())

    def finish(self) -> m.Complete:
        """Send the rest, and end it. Raises TransferFailed."""
        while self.left:
            self.send()
        while any(file.rehashing for file, _, _ in self.transfer.tree._large_files.open_files.all()):
            self.transfer.rehashed()
        try:
            assert list(self.transfer.tree.missing()) == []
            self.transfer.tree.finish(self.transfer.sample.finish)
            step = self.transfer.tree.next_step()
            assert callable(step)
            step()
            complete = self.transfer.tree.next_step()
            assert isinstance(complete, m.Complete)
            return complete
        finally:
            self.transfer.close()


class TreeShardsMachine(RuleBasedStateMachine):
    """The shards of one job."""

    def __init__(self) -> None:
        super().__init__()
        memory = "/dev/shm"
        self.root = Path(tempfile.mkdtemp(prefix="shards-", dir=memory if os.path.isdir(memory) else None))
        self.live: dict[int, Live] = {}
        self.finished: dict[int, int] = {}  # the version with which each shard has finished
        self.earlier: set[int] = set()  # those that have not come again since all had finished
        self.has_lost = False  # whether something was lost: then nothing is modelled but what is in place

    @initialize(count=st.integers(2, 5), sizes=TREES, seed=st.integers(0, 99))
    def begin(self, count: int, sizes: dict[bytes, int], seed: int) -> None:
        self.count = count
        self.chance = random.Random(seed)
        contents = {b"t/" + name: self.chance.randbytes(size) for name, size in sizes.items()}
        self.source = Source(0, contents, dict.fromkeys(contents, MTIME))
        self.versions = [self.source]

    def teardown(self) -> None:
        try:
            if hasattr(self, "count"):
                for index in list(self.live):
                    self.live.pop(index).transfer.close()
                self.run_again()
        finally:
            shutil.rmtree(self.root)

    def run_again(self) -> None:
        """Run all shards once more, those that have ended first: nobody knows which of them were right.

        Of what was lost, each time may find one more share.
        """
        committed: bool | None = False
        for _ in range(1 + self.has_lost * self.count):
            for index in range(self.count):
                self.start(index)
                committed = self.end(index)
            if committed:
                break
        assert committed is True
        self.check(self.source)

    def check(self, source: Source) -> None:
        for path, content in source.contents.items():
            assert (self.root / path.decode()).read_bytes() == content
        # What is staged of an earlier version goes by its age, or when its path is next a shared file.
        left = {path.name for path in (self.root / ".filestreamer").iterdir()}
        for path, content in source.contents.items():
            grid, mtime_ns = Grid(len(content), C), source.mtimes[path]
            names = SharedNames.of(path, grid, mtime_ns, Share(0, self.count))
            assert not [name for name in left if name.startswith(names.stem)]

    def start(self, index: int) -> None:
        self.finished.pop(index, None)
        self.earlier.discard(index)
        sample = self.source.sample(Share(index, self.count))
        self.live[index] = Live(self.root, sample, self.source.version, self.chance)

    def end(self, index: int) -> bool | None:
        """End a shard; return whether it has committed the job, None where it saw another tree than others."""
        shard = self.live.pop(index)
        if self.has_lost:
            try:
                return shard.finish().committed
            except TransferFailed as error:
                if error.code in (Code.SOURCE_CHANGED, Code.DESTINATION):
                    return None
                raise
        if any(self.finished[other] != shard.version for other in self.earlier):
            self.finished = {other: version for other, version in self.finished.items() if other not in self.earlier}
            self.earlier.clear()
        is_same = set(self.finished.values()) <= {shard.version}
        self.finished[index] = shard.version
        if not is_same:
            failure(Code.SOURCE_CHANGED, shard.finish)
            return None
        complete = shard.finish()
        assert complete.shards_finished == len(self.finished), (complete, self.finished)
        is_last = len(self.finished) == self.count
        assert complete.committed == is_last
        if is_last and not self.earlier:
            self.earlier = set(self.finished)
        return is_last

    @rule(index=st.integers(0, 4))
    def comes(self, index: int) -> None:
        index %= self.count
        if index not in self.live:
            self.start(index)

    @precondition(lambda self: self.live)
    @rule(choice=st.integers(0, 4), chunks=st.integers(1, 9))
    def writes(self, choice: int, chunks: int) -> None:
        shard = list(self.live.values())[choice % len(self.live)]
        for _ in range(min(chunks, len(shard.left))):
            shard.send()

    @precondition(lambda self: self.live)
    @rule(choice=st.integers(0, 4))
    def finishes(self, choice: int) -> None:
        index = list(self.live)[choice % len(self.live)]
        version = self.live[index].version
        if self.end(index) and not self.live and version == self.source.version:
            self.check(self.source)

    @precondition(lambda self: self.live)
    @rule(choice=st.integers(0, 4))
    def is_lost(self, choice: int) -> None:
        index = list(self.live)[choice % len(self.live)]
        self.live.pop(index).transfer.close()

    @precondition(lambda self: not self.live)
    @rule(choice=st.integers(0, 99), how=st.sampled_from(("removed", "spoiled", "cut")))
    def something_is_lost(self, choice: int, how: str) -> None:
        """Lose something in staging, while no receiver runs: bytes, or a ledger."""
        staged = sorted((self.root / ".filestreamer").glob("*.[sl]*")) if self.finished else []
        if not staged:
            return
        self.has_lost = True
        path = staged[choice % len(staged)]
        if how == "removed":
            path.unlink()
        elif how == "spoiled":
            path.write_bytes(self.chance.randbytes(path.stat().st_size))
        else:
            os.truncate(path, path.stat().st_size // 2)

    @precondition(lambda self: not self.live)
    @rule(choice=st.integers(0, 7), size=SIZES)
    def source_changes(self, choice: int, size: int) -> None:
        path = sorted(self.source.contents)[choice % len(self.source.contents)]
        version = self.source.version + 1
        contents = {**self.source.contents, path: self.chance.randbytes(size)}
        self.source = Source(version, contents, {**self.source.mtimes, path: MTIME + version * 10**9})
        self.versions.append(self.source)

    @invariant()
    def every_file_is_one_version(self) -> None:
        if not hasattr(self, "count"):
            return
        for path in self.source.contents:
            with contextlib.suppress(FileNotFoundError):
                there = (self.root / path.decode()).read_bytes()
                assert there in [version.contents[path] for version in self.versions]


TreeShardsMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
TestTreeShards = TreeShardsMachine.TestCase


@given(sizes=TREES, count=st.integers(1, 40), checksum=st.booleans(), linked=st.sets(PATHS))
def test_each_segment_is_moved_by_one_shard(
    sizes: dict[bytes, int], count: int, checksum: bool, linked: set[bytes]
) -> None:
    shards = [TreeShares(Share(index, count), C, checksum=checksum) for index in range(count)]
    for path, size in sizes.items():
        is_linked = path in linked
        entry = m.Entry(path, m.EntryType.FILE, size, 0o644, 0, hard_link_group=int(is_linked))
        owners = [shares for shares in shards if shares.has(entry)]
        moved = [
            segment
            for shares in owners
            for segment in range(Grid(size, C).segments)
            if shares.share_of(entry).holds(segment)
        ]
        assert sorted(moved) == list(range(Grid(size, C).segments))
        assert len([shares for shares in owners if shares.share_of(entry).index == 0]) == 1
