"""Jobs and runs: no two transfers swap their data, and each side ends when the other one has ended for good."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from filestreamer.wire import messages as m
from filestreamer.wire.digests import root_digest
from filestreamer.wire.errors import Code, Refused
from filestreamer.wire.grid import Share
from filestreamer.wire.limits import KIB
from filestreamer.wire.tree_shares import TreeShares, WalkDigest, shard_of
from tests.support.dialling_peer import DiallingReceiver
from tests.support.peer import RawReceiver, RawSender, Sample
from tests.support.services import Pair, Service, impatient, inject, same
from tests.support.waiting import with_patience

TOKEN = {"FILESTREAMER_TOKEN": "a token that both sides of all jobs have"}
RETURN = {"receiver.server.run.RETURN_SECONDS": 2, "receiver.transfer.coordinator.JOB_COMPLETE_SECONDS": 2}
FOR_EVER = ("--give-up-after", "600")


@pytest.fixture
def sample() -> Sample:
    return Sample.random(1, 5000, 1000)


def of_job(
    pair: Pair,
    *args: object,
    job: str = "photos",
    run: str = "first",
    directory: Path | None = None,
    port: int = 0,
    bounds: Mapping[str, float] = RETURN,
    env: Mapping[str, str] | None = None,
) -> Service:
    """Start the receiver of a run."""
    where = ("--listen", f"127.0.0.1:{port}", "--directory", directory or pair.destination)
    how = impatient("receiver", bounds, {**TOKEN, "FILESTREAMER_RECEIVER_RUN": run, **(env or {})})
    return pair.start("receiver", *where, "--once", "--job", job, *args, **how)


def sends(pair: Pair, what: Path | str, to: Service | str, *args: object, job: str = "photos") -> Service:
    address = to if isinstance(to, str) else Pair.address(to)
    return pair.start("sender", what, "--to", address, "--job", job, *args, env=TOKEN)


def receipts(pair: Pair) -> list[Path]:
    return sorted((pair.destination / ".filestreamer").glob("*.receipt"))


# --- which job


def test_two_transfers_that_would_swap_their_data(pair: Pair, tmp_path: Path) -> None:
    """The address of each leads to the receiver of the other: both are refused, and nothing arrives."""
    places = {job: tmp_path / job for job in ("photos", "mails")}
    files = {job: pair.file(f"{job}.bin", 300_000, seed) for seed, job in enumerate(places)}
    receivers = {}
    for job, place in places.items():
        place.mkdir()
        receivers[job] = of_job(pair, job=job, directory=place)
    for job, other in (("photos", "mails"), ("mails", "photos")):
        message = sends(pair, files[job], receivers[other], job=job).fails(3, "job", status="refused")
        assert "'photos'" in message
        assert "'mails'" in message
    assert [sorted(os.listdir(place)) for place in places.values()] == [[], []]
    for job, file in files.items():
        assert sends(pair, file, receivers[job], job=job).succeeds()["committed"]
        receivers[job].succeeds()
        assert same(file, places[job] / file.name)


def test_a_receiver_with_a_job_takes_no_sender_without_one(pair: Pair) -> None:
    receiver, file = of_job(pair), pair.file("f", 1000)
    pair.sender(file, Pair.address(receiver), env=TOKEN).fails(3, "job", status="refused")
    assert receiver.poll() is None
    sends(pair, file, receiver).succeeds()
    receiver.succeeds()


def test_a_receiver_without_a_job_takes_any(pair: Pair) -> None:
    receiver = pair.receiver(env=TOKEN)
    for job in ("photos", "mails"):
        assert sends(pair, pair.file(job, 1000), receiver, job=job).succeeds()["committed"]


def test_a_sender_with_a_job_offers_nothing_to_a_receiver_that_does_not_repeat_it(pair: Pair) -> None:
    with RawReceiver(TOKEN["FILESTREAMER_TOKEN"]) as peer:
        sender = sends(pair, pair.file("f", 1000), peer.address)
        link, hello, welcome = peer.hello()
        assert (hello.job, welcome.job) == ("photos", "photos")
        link.send(welcome._replace(job=""))
        link.ends()
        assert "photos" in sender.fails(3, "job", status="refused")


def test_nothing_of_a_job_is_sent_before_welcome_without_a_token(pair: Pair) -> None:
    with RawReceiver() as peer:
        sender = pair.start("sender", pair.file("f", 1000), "--to", peer.address, "--job", "photos")
        link, hello, welcome = peer.hello()
        assert hello.job == "photos"
        link.send(welcome._replace(job="mails"))
        link.ends()
        sender.fails(3, "job", status="refused")


def test_where_the_receiver_dials(pair: Pair) -> None:
    """Either side may have none, or another one: only a receiver without a job takes any."""
    file = pair.file("f", 300_000)
    sender = pair.start("sender", file, "--listen", "127.0.0.1:0", "--job", "photos", env=TOKEN)
    connect = ("receiver", "--connect", Pair.address(sender), "--directory", pair.destination)
    pair.start(*connect, "--job", "mails", env=TOKEN).fails(3, "job", status="refused")
    assert "f" not in pair.received()
    pair.start(*connect, "--job", "photos", env=TOKEN).succeeds()
    assert same(file, pair.destination / "f")
    pair.start(*connect, env=TOKEN).succeeds()
    without = pair.start("sender", file, "--listen", "127.0.0.1:0", env=TOKEN)
    connect = ("receiver", "--connect", Pair.address(without), "--directory", pair.destination)
    pair.start(*connect, "--job", "photos", env=TOKEN).fails(3, "job", status="refused")
    pair.start(*connect, env=TOKEN).succeeds()


def test_a_dialling_receiver_that_changes_the_job_in_welcome(pair: Pair) -> None:
    sender = pair.start("sender", pair.file("f", 1000), "--listen", "127.0.0.1:0", "--job", "photos", env=TOKEN)
    with DiallingReceiver(Pair.address(sender), token=TOKEN["FILESTREAMER_TOKEN"].encode()) as peer:
        peer.job = "mails"
        with pytest.raises(Refused) as refused:
            peer.open(m.Role.CONTROL)
        assert refused.value.code is Code.JOB


# --- receipts


def test_a_receiver_that_is_killed_after_its_end_is_done(pair: Pair) -> None:
    """The sender does not come back: the next process of this run ends by itself, with the result."""
    file = pair.file("f", 300_000)
    first = of_job(pair, env=inject("rename", "after", path=".receipt"))
    port = int(Pair.address(first).rpartition(":")[2])
    sender = sends(pair, file, first)
    assert first.wait() == 128 + signal.SIGKILL
    sender.signal(signal.SIGKILL)
    assert same(file, pair.destination / "f")
    (kept,) = receipts(pair)
    assert kept.stat().st_mode & 0o777 == 0o600
    again = of_job(pair, port=port)
    again.wait_for("receipt_found")
    result = again.succeeds()
    assert (result["committed"], result["files"], result["bytes"]) == (True, 1, 300_000)


@pytest.mark.parametrize("args", [(), ("--no-replace",)])
@pytest.mark.parametrize("what", ["tree", "file"])
def test_a_sender_that_has_not_heard_of_the_end_is_answered(pair: Pair, what: str, args: tuple[str, ...]) -> None:
    """Killed between the commit and Complete: the sender rejoins the next process, and both end well."""
    source = pair.source / "t"
    if what == "tree":
        source.mkdir()
        for number in range(5):
            (source / str(number)).write_bytes(os.urandom(10_000))
    else:
        source.write_bytes(os.urandom(50_000))
    first = of_job(pair, *args, env=inject("rename", "after", path=".receipt"))
    address = Pair.address(first)
    sender = sends(pair, source, first)
    assert first.wait() == 128 + signal.SIGKILL
    again = of_job(pair, *args, port=int(address.rpartition(":")[2]), bounds={})
    assert sender.succeeds()["committed"]
    result = again.succeeds()
    assert (result["sent_bytes"], result["held_bytes"] + result["unchecked_bytes"]) == (0, 50_000)


@pytest.mark.parametrize("job", [("--job", "photos"), ()], ids=["job", "none"])
@pytest.mark.parametrize("names", [("t",), ("a", "t")], ids=["directory", "contents"])
def test_a_new_sender_of_what_is_complete_is_answered(
    pair: Pair, tmp_path: Path, names: tuple[str, ...], job: tuple[str, ...]
) -> None:
    """A sender pod that is lost right after the commit has a successor, which offers the same anew, or more."""
    for name in names:
        (pair.source / name).mkdir()
    where = ("--listen", "127.0.0.1:0", "--directory", pair.destination, "--result-file", tmp_path / "result")
    receiver = pair.start("receiver", *where, "--once", *job, env=TOKEN)
    entry = m.Entry(b"t", m.EntryType.DIRECTORY, 0, 0o755, 0)
    with RawSender(Pair.address(receiver), token=TOKEN["FILESTREAMER_TOKEN"], job="".join(job[1:])) as peer:
        control = peer.control()
        control.send(m.Offer(4 * KIB, None, False, 0), m.ManifestPart(0, (entry,), True), m.Finish(0, root_digest(())))
        control.expect(m.Complete)
        control.reset()
        what = pair.source / "t" if len(names) == 1 else f"{pair.source}/"
        successor = pair.start("sender", what, "--to", Pair.address(receiver), *job, env=TOKEN)
        assert successor.succeeds()["committed"]
    assert receiver.wait() == 0
    assert [result["committed"] for result in receiver.results] == [True, True]
    assert json.loads((tmp_path / "result").read_text()) == receiver.results[0]
    assert sorted(os.listdir(pair.destination)) == list(names)


def test_what_changed_meanwhile_arrives_from_a_sender_that_returns(pair: Pair) -> None:
    """The receipt alone is no answer: size, mtime and bytes of what is offered are looked at."""
    file = pair.file("f", 20_000)
    first = of_job(pair)
    sends(pair, file, first).succeeds()
    first.succeeds()
    file.write_bytes(os.urandom(20_000))
    again = of_job(pair, bounds={})
    again.wait_for("receipt_found")
    assert sends(pair, file, again).succeeds()["sent_bytes"] == 20_000
    again.succeeds()
    assert same(file, pair.destination / "f")


def test_a_file_that_is_gone_at_the_destination_arrives_again(pair: Pair) -> None:
    file = pair.file("f", 20_000)
    first = of_job(pair)
    sends(pair, file, first).succeeds()
    first.succeeds()
    (pair.destination / "f").unlink()
    again = of_job(pair, bounds={})
    assert sends(pair, file, again).succeeds()["sent_bytes"] == 20_000
    again.succeeds()
    assert same(file, pair.destination / "f")


def test_a_new_run_of_the_same_job_receives_again(pair: Pair) -> None:
    """Complete, delete both Jobs, change one file, apply again: the change arrives."""
    tree = pair.source / "t"
    tree.mkdir()
    for name in ("a", "b"):
        (tree / name).write_bytes(os.urandom(30_000))
    first = of_job(pair, run="uid-1")
    sends(pair, f"{tree}/", first).succeeds()
    first.succeeds()
    (tree / "b").write_bytes(os.urandom(31_000))
    second = of_job(pair, run="uid-2", bounds={})
    result = sends(pair, f"{tree}/", second).succeeds()
    assert (result["sent_bytes"], result["unchecked_bytes"]) == (31_000, 30_000)
    second.succeeds()
    assert same(tree / "b", pair.destination / "b")
    assert second.events("receipt_found") == []
    assert len(receipts(pair)) == 2


def test_the_receipt_of_another_job_or_a_damaged_one_is_none(pair: Pair) -> None:
    file = pair.file("f", 1000)
    first = of_job(pair)
    sends(pair, file, first).succeeds()
    first.succeeds()
    other = of_job(pair, job="mails", bounds={})
    sends(pair, file, other, job="mails").succeeds()
    other.succeeds()
    assert other.events("receipt_found") == []
    (kept,) = receipts(pair)
    for content in (b"", b"{", b"[]", b'{"run": "first", "job": "photos", "result": {"fields": {"status": 1}}}'):
        kept.write_bytes(content)
        again = of_job(pair, bounds={})
        sends(pair, file, again).succeeds()
        again.succeeds()
        assert again.events("receipt_found") == []


def test_a_receipt_that_can_not_be_kept_loses_nothing(pair: Pair) -> None:
    file = pair.file("f", 1000)
    receiver = of_job(pair, env=inject("rename", "ENOSPC", path=".receipt"))
    assert sends(pair, file, receiver).succeeds()["committed"]
    receiver.succeeds()
    assert receiver.times("receipt_not_kept") == 1
    assert receipts(pair) == []


def test_receipts_go_with_old_staging(pair: Pair) -> None:
    first = of_job(pair)
    sends(pair, pair.file("f", 1000), first).succeeds()
    first.succeeds()
    (kept,) = receipts(pair)
    os.utime(kept, (0, 0))
    again = of_job(pair, "--discard-staging-after", "3600", bounds={})
    Pair.address(again)
    assert again.events("receipt_found") == []
    again.signal(signal.SIGTERM)
    again.wait()
    assert receipts(pair) == []


# --- partners that end


def test_a_sender_that_ends_for_good_before_it_connects(pair: Pair) -> None:
    receiver = of_job(pair, bounds={})
    sends(pair, str(pair.source / "missing"), receiver).fails(4, "source")
    assert "ended the transfer" in receiver.fails(4, "source")


def test_the_receiver_of_such_a_sender_may_start_later(pair: Pair) -> None:
    port = pair.port()
    sender = sends(pair, str(pair.source / "missing"), f"127.0.0.1:{port}")
    receiver = of_job(pair, port=port, bounds={})
    receiver.fails(4, "source")
    sender.fails(4, "source")
    assert sender.times("receiver_told") == 1


def both_end_as_it_changes(file: Path, sender: Service, receiver: Service) -> None:
    """Change a file that is being sent slowly."""
    receiver.wait_for("transfer_started")
    file.write_bytes(os.urandom(1_000_000))
    sender.fails(4, "source_changed")
    receiver.fails(4, "source_changed")


def test_a_source_that_changes_ends_both(pair: Pair) -> None:
    file = pair.file("f", 2_000_000)
    receiver = of_job(pair, bounds={})
    sender = sends(pair, file, receiver, "--rate-limit", "200KiB/s", "--chunk-size", "64KiB")
    both_end_as_it_changes(file, sender, receiver)


def test_a_receiver_that_can_not_write_ends_with_its_sender(pair: Pair) -> None:
    """Its own reason counts as well: the sender has ended with it. However soon it ends, its result is told before."""
    (pair.destination / "f").mkdir()
    receiver = of_job(pair, bounds={"receiver.server.server.TICK_SECONDS": 0.0001})
    sender = sends(pair, pair.file("f", 1000), receiver)
    code = sender.wait()
    assert code in (3, 4)
    assert receiver.wait() == code
    assert receiver.result["error"]["code"] == sender.result["error"]["code"]


@pytest.mark.parametrize("args", [(), ("--once",)])
def test_without_a_job_a_receiver_waits_for_the_next_sender(pair: Pair, args: tuple[str, ...]) -> None:
    receiver = pair.receiver(*args, env=TOKEN)
    with RawSender(Pair.address(receiver), token=TOKEN["FILESTREAMER_TOKEN"]) as peer:
        control = peer.control()
        control.send(m.Abort(Code.SOURCE, "gone"))
        control.end_writing()
        control.ends()
    receiver.wait_for("sender_left")
    pair.sender(pair.file("f", 1000), Pair.address(receiver), env=TOKEN).succeeds()


def test_only_who_has_proved_the_token_ends_a_receiver(pair: Pair, sample: Sample) -> None:
    receiver = pair.receiver("--once", "--job", "photos", "--anonymous")
    with RawSender(Pair.address(receiver), job="photos") as peer:
        peer.can_prove = False
        control = peer.control()
        control.send(m.Abort(Code.SOURCE, "gone"))
        control.end_writing()
        control.ends()
    receiver.wait_for("sender_left")
    with RawSender(Pair.address(receiver), job="photos") as peer:
        peer.offer(sample).expect(m.Needed)


def test_shards_the_receiver_ends_when_all_have_ended(pair: Pair) -> None:
    """One ends for good; the other one still moves its share before the receiver ends."""
    (pair.source / "t").mkdir()
    for number in range(20):
        (pair.source / "t" / str(number)).write_bytes(os.urandom(30_000))
    receiver = of_job(pair, bounds={})
    address = Pair.address(receiver)
    other = sends(
        pair, pair.source / "t", address, "--shard", "1/2", "--rate-limit", "100KiB/s", "--chunk-size", "8KiB"
    )
    receiver.wait_for("transfer_started")
    sends(pair, str(pair.source / "missing"), address, "--shard", "0/2").fails(4, "source")
    assert other.wait() == 0
    assert other.result["committed"] is False
    assert receiver.wait() == 4


def test_shards_of_a_new_run_are_all_waited_for(pair: Pair) -> None:
    """Apply again, with nothing changed: the first shard of the new run is not the last one of the earlier run."""
    (pair.source / "t").mkdir()
    for number in range(9):
        (pair.source / "t" / str(number)).write_bytes(os.urandom(3000))

    for run in ("uid-1", "uid-2"):
        receiver = of_job(pair, run=run, bounds={})
        for index in (0, 1):
            sender = sends(pair, pair.source / "t", receiver, "--shard", f"{index}/2")
            assert sender.wait() == 0
            assert sender.result["committed"] is (index == 1)
        assert receiver.wait() == 0


def test_a_shard_that_has_not_heard_of_its_end_is_waited_for(pair: Pair) -> None:
    """Also where the shards have no name in common, as they send the content of a directory."""
    (pair.source / "t").mkdir()
    file = pair.source / "t" / "f"
    file.write_bytes(b"small")
    owner = shard_of(b"f", 0, 2)
    walk = WalkDigest(TreeShares(Share(1 - owner, 2), KIB, checksum=False), KIB)
    walk.directory(b"")
    walk.file(b"f", 5, file.stat().st_mtime_ns, is_linked=False)
    offer = (m.Offer(KIB, m.Shard(1 - owner, 2, tree=True), False, 0), m.ManifestPart(0, (), True))
    receiver = of_job(pair, bounds={})
    with RawSender(Pair.address(receiver), token=TOKEN["FILESTREAMER_TOKEN"], job="photos") as peer:
        control = peer.control()
        control.send(*offer, m.Finish(0, root_digest(()), walk_digest=walk.digest()))
        assert control.expect(m.Complete).committed is False
        args = ("--shard", f"{owner}/2", "--chunk-size", "1KiB")
        assert sends(pair, f"{pair.source}/t/", receiver, *args).succeeds()["committed"]
        receiver.wait_for_results(1)
        again = peer.control()
        again.send(*offer)
        assert again.expect(m.Complete).committed is False
        again.end_writing()
        again.ends()
    assert receiver.wait() == 0


def test_a_run_to_which_no_sender_comes(pair: Pair) -> None:
    receiver = of_job(pair, "--idle-timeout", "0.5")
    message = receiver.fails(6, "absent")
    assert "ended for good" in message
    assert "can't reach" in message


def test_without_a_job_that_may_be_tried_again(pair: Pair) -> None:
    pair.receiver("--once", "--idle-timeout", "0.5", env=TOKEN).fails(1, "timeout")


ABSENT = {"sender.presence.ABSENT_SECONDS": 5}


def test_a_sender_whose_receiver_is_gone(pair: Pair) -> None:
    """Both causes are named: it has ended, or can't be reached."""
    how = impatient("sender", ABSENT, TOKEN)
    to = f"127.0.0.1:{pair.port()}"
    sender = pair.start("sender", pair.file("f", 1000), "--to", to, "--job", "photos", *FOR_EVER, **how)
    message = sender.fails(6, "absent")
    assert "it has ended" in message
    assert "can't be reached" in message


def test_a_sender_whose_receiver_goes_during_the_transfer(pair: Pair) -> None:
    receiver = of_job(pair)
    to = ("--to", Pair.address(receiver), "--job", "photos", "--rate-limit", "100KiB/s", "--chunk-size", "64KiB")
    sender = pair.start("sender", pair.file("f", 2_000_000), *to, *FOR_EVER, **impatient("sender", ABSENT, TOKEN))
    receiver.wait_for("transfer_started")
    receiver.signal(signal.SIGKILL)
    sender.fails(6, "absent")


def test_a_dry_run_whose_receiver_is_gone(pair: Pair) -> None:
    how = impatient("sender", ABSENT, TOKEN)
    to = f"127.0.0.1:{pair.port()}"
    asking = ("sender", pair.file("f", 1000), "--to", to, "--dry-run", "--job", "photos", *FOR_EVER)
    message = pair.start(*asking, **how).fails(6, "absent")
    assert "it has ended" in message
    assert "can't be reached" in message


def test_without_a_job_a_dry_run_waits_as_long_as_it_is_told(pair: Pair) -> None:
    how = impatient("sender", ABSENT, TOKEN)
    to = f"127.0.0.1:{pair.port()}"
    asking = ("sender", pair.file("f", 1000), "--to", to, "--dry-run", "--give-up-after", "8")
    pair.start(*asking, **how).fails(1, "timeout")


def test_without_a_job_a_sender_waits_as_long_as_it_is_told(pair: Pair) -> None:
    how = impatient("sender", ABSENT, TOKEN)
    to = f"127.0.0.1:{pair.port()}"
    pair.start("sender", pair.file("f", 1000), "--to", to, "--give-up-after", "8", **how).fails(1, "timeout")


# --- partners that end, where the sender listens


def listens(
    pair: Pair, what: Path | str, *args: object, bounds: Mapping[str, float] | None = None, once: bool = True
) -> Service:
    where = ("--listen", "127.0.0.1:0", *(["--once"] if once else []), "--job", "photos")
    return pair.start("sender", what, *where, *args, **impatient("sender", bounds or {}, TOKEN))


def fetches(pair: Pair, sender: Service | str, *args: object, directory: Path | None = None) -> Service:
    address = sender if isinstance(sender, str) else Pair.address(sender)
    where = ("--connect", address, "--directory", directory or pair.destination, "--job", "photos")
    return pair.start("receiver", *where, *args, env=TOKEN)


def test_a_listening_sender_to_which_no_receiver_comes(pair: Pair) -> None:
    message = listens(pair, pair.file("f", 1000), "--idle-timeout", "0.5").fails(6, "absent")
    assert "ended for good" in message
    assert "can't reach" in message


def test_a_listening_sender_that_stays_or_has_no_job_may_be_tried_again(pair: Pair) -> None:
    file = pair.file("f", 1000)
    listens(pair, file, "--idle-timeout", "0.5", once=False).fails(1, "timeout")
    args = ("--listen", "127.0.0.1:0", "--once", "--idle-timeout", "0.5")
    pair.start("sender", file, *args, env=TOKEN).fails(1, "timeout")


def test_a_receiver_that_finds_no_sender_to_dial(pair: Pair) -> None:
    message = fetches(pair, f"127.0.0.1:{pair.port()}", "--give-up-after", "1").fails(6, "absent")
    assert "it has ended" in message
    assert "can't be reached" in message


def test_a_receiver_whose_sender_goes_during_the_transfer(pair: Pair) -> None:
    sender = listens(pair, pair.file("f", 2_000_000), "--rate-limit", "100KiB/s", "--chunk-size", "64KiB")
    receiver = fetches(pair, sender, "--give-up-after", "6")
    receiver.wait_for("transfer_started")
    sender.signal(signal.SIGKILL)
    receiver.fails(6, "absent")


def test_a_sender_that_is_there_and_busy_is_not_absent(pair: Pair, tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as silent:
        sender = pair.start("sender", "-", "--listen", "127.0.0.1:0", "--job", "photos", env=TOKEN, stdin=silent.stdout)
        fetches(pair, sender).wait_for("transfer_started")
        (tmp_path / "other").mkdir()

        def is_told(give_up_after: float) -> bool:
            other = fetches(pair, sender, "--give-up-after", give_up_after, directory=tmp_path / "other")
            other.wait()
            return "another receiver gets it" in other.result["error"]["message"] and bool(other.fails(1, "timeout"))

        with_patience(is_told, "the sender has answered")
        silent.communicate(b"\n")


def test_a_listening_sender_that_can_not_begin_tells_its_receiver(pair: Pair) -> None:
    sender = listens(pair, str(pair.source / "missing"))
    assert "missing" in fetches(pair, sender).fails(4, "source")
    assert "missing" in sender.fails(4, "source")
    assert sender.times("receiver_told") == 1


def test_a_listening_sender_that_can_not_begin_waits_for_no_receiver_for_long(pair: Pair) -> None:
    missing = str(pair.source / "missing")
    sender = listens(pair, missing, bounds={"sender.server.server.TELL_SECONDS": 0.5})
    assert "missing" in sender.fails(4, "source")
    assert "missing" in listens(pair, missing, "--idle-timeout", "0.5").fails(4, "source")
    assert "missing" in listens(pair, missing, once=False).fails(4, "source")


def test_a_source_that_changes_ends_a_listening_sender_and_its_receiver(pair: Pair) -> None:
    file = pair.file("f", 2_000_000)
    sender = listens(pair, file, "--rate-limit", "200KiB/s", "--chunk-size", "64KiB")
    receiver = fetches(pair, sender)
    both_end_as_it_changes(file, sender, receiver)


def test_a_dialling_receiver_that_can_not_write_ends_its_sender(pair: Pair) -> None:
    (pair.destination / "f").mkdir()
    sender = listens(pair, pair.file("f", 1000))
    code = fetches(pair, sender).wait()
    assert code in (3, 4)
    assert sender.wait() == code
    assert "the other side ended the transfer" in sender.result["error"]["message"]


def test_without_a_job_a_listening_sender_waits_for_the_next_receiver(pair: Pair, tmp_path: Path) -> None:
    (pair.destination / "f").mkdir()
    (tmp_path / "other").mkdir()
    sender = pair.start("sender", pair.file("f", 1000), "--listen", "127.0.0.1:0", "--once", env=TOKEN)
    connect = ("receiver", "--connect", Pair.address(sender), "--directory")
    assert pair.start(*connect, pair.destination, env=TOKEN).wait() in (3, 4)
    pair.start(*connect, tmp_path / "other", env=TOKEN).succeeds()
    assert sender.wait() == 0


def test_a_receiver_that_is_refused_ends_no_listening_sender(pair: Pair) -> None:
    file = pair.file("f", 1000)
    sender = listens(pair, file)
    connect = ("receiver", "--connect", Pair.address(sender), "--directory", pair.destination)
    other_token = {"FILESTREAMER_TOKEN": "another token than that of the jobs"}
    pair.start(*connect, "--job", "photos", env=other_token).fails(3, "token", status="refused")
    pair.start(*connect, "--job", "mails", env=TOKEN).fails(3, "job", status="refused")
    fetches(pair, sender).succeeds()
    sender.succeeds()


@pytest.mark.parametrize("other_ends", ["complete", "killed"])
def test_a_listening_sender_ends_when_all_its_receivers_have_ended(pair: Pair, tmp_path: Path, other_ends: str) -> None:
    """One ends for good; another one goes on, and counts if it has everything."""
    slow = ("--rate-limit", "200KiB/s", "--chunk-size", "64KiB", "--give-up-after", "6")
    sender = listens(pair, pair.file("f", 600_000), *slow)
    (tmp_path / "other" / "f").mkdir(parents=True)
    receiver = fetches(pair, sender)
    receiver.wait_for("transfer_started")
    code = fetches(pair, sender, directory=tmp_path / "other").wait()
    assert code in (3, 4)
    sender.wait_for_results(1)
    assert receiver.poll() is None
    if other_ends == "complete":
        receiver.succeeds()
        assert sender.wait() == 0
    else:
        receiver.signal(signal.SIGTERM)
        receiver.wait()
        assert sender.wait() == code
