"""A receiver for many: each user has a token (--tokens), and a directory where nobody else reads, writes or waits."""

from pathlib import Path

import pytest

from filestreamer.wire import messages as m
from filestreamer.wire.errors import Code
from tests.support.contract import BY_USER
from tests.support.peer import RawSender, Sample, acknowledged
from tests.support.proxy import Proxy
from tests.support.scrape import METRICS, scrape
from tests.support.services import Pair, Service, same
from tests.support.staging import Staging
from tests.support.waiting import until

USERS = ("alice", "bob", "carol")
SLOW = ("--rate-limit", "1MB", "--connections", 2, "--chunk-size", "128KiB")
SIZE = 8_000_000


class Many:
    """A receiver with users, and senders that have their tokens."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.tokens = pair.source.parent / "tokens"
        self.tokens.mkdir()
        for user in USERS:
            self.let_in(user)

    def let_in(self, user: str, token: str = "") -> None:
        """Give a user this token, or the usual one, as a whole."""
        new = self.tokens / f".{user}"
        new.write_text(token or self.token(user))
        new.chmod(0o600)
        new.rename(self.tokens / user)

    @staticmethod
    def token(user: str) -> str:
        return f"the token of {user}, of more than 32 characters"

    def receiver(self, *args: object) -> Service:
        """Start a receiver for these users."""
        return self.pair.receiver("--tokens", self.tokens, *args)

    def send(self, user: str, file: Path, to: str, *args: object) -> Service:
        """Send a file as this user."""
        return self.pair.sender(file, to, *args, env={"FILESTREAMER_TOKEN": self.token(user)})

    def home(self, user: str) -> Path:
        """Return the directory of a user."""
        return self.pair.destination / user

    def moving(self, user: str, file: Path, sender: Service) -> None:
        """Wait until some of a file is in the user's staging."""
        until(self.home(user).exists, "the directory is made")
        Staging(self.home(user), file.name).wait_for_records(4)
        assert sender.poll() is None


@pytest.fixture
def many(pair: Pair) -> Many:
    """Return three users and their tokens."""
    return Many(pair)


def test_each_user_has_a_directory(many: Many) -> None:
    """Two files of one name arrive at once; over TLS, which each token vouches for. A stranger is refused."""
    receiver = many.receiver("--tls", *METRICS)
    address = Pair.address(receiver)
    files = {user: many.pair.file(f"{user}-f", 300_000, seed) for seed, user in enumerate(USERS[:2])}
    senders = [many.send(user, file, address, "--as", "f", "--tls") for user, file in files.items()]
    stranger = many.send("mallory", files["alice"], address, "--as", "f", "--tls")
    for sender in senders:
        sender.succeeds()
    assert "the token is wrong" in stranger.fails(3, "token", status="refused")
    for user, file in files.items():
        assert same(file, many.home(user) / "f")
    assert many.pair.received() == ["alice", "bob"]
    receiver.wait_for("transfer_complete", count=len(files))  # said when the sender has closed, which may be over then
    ended = {line["user"]: line["file"] for line in receiver.events("transfer_complete")}
    assert ended == {user: str(many.home(user) / "f") for user in files}
    assert not any(many.token(user) in receiver.stderr + receiver.stdout for user in USERS)

    many.let_in("dave")
    (many.tokens / "carol").unlink()
    receiver.wait_for("user_removed")
    seen = scrape(receiver)
    for name, (kind, labels) in BY_USER.items():
        assert seen.families[name].type == kind
        assert all(sample.labels.keys() == labels for sample in seen.families[name].samples)
    assert {labels["user"] for labels, _ in seen.samples("user_transfers_under_way")} == {"alice", "bob", "dave"}
    assert seen.value("user_transfers_total", user="alice", result="complete") == 1
    assert seen.value("user_received_bytes_total", user="bob") >= 300_000
    assert seen.value("user_received_bytes_total", user="dave") == 0
    assert seen.value("refused_connections_total", reason="token") >= 1


def test_tokens_come_and_go_while_files_move(many: Many) -> None:
    """One user is taken away, one gets another token, and that of the third one is broken: only the first one ends."""
    receiver = many.receiver()
    file = many.pair.file("f", SIZE)
    with Proxy(Pair.address(receiver)) as proxy:
        senders = {user: many.send(user, file, proxy.address, *SLOW) for user in USERS}
        for user, sender in senders.items():
            many.moving(user, file, sender)
        (many.tokens / "alice").unlink()
        many.let_in("bob", "another token for bob, long enough to be one")
        many.let_in("carol", "short")
        said = senders["alice"].fails(3, "token", status="refused")
        assert "token of user alice was taken away" in said
        receiver.wait_for("user_renewed")
        proxy.reset("*")
        for user in USERS[1:]:
            assert senders[user].succeeds()["reconnects"] >= 1
            assert same(file, many.home(user) / "f")
        for user in USERS[:2]:
            many.send(user, file, proxy.address).fails(3, "token", status="refused")
        many.let_in("alice")
        receiver.wait_for("user_added")
        assert many.send("alice", file, proxy.address, *SLOW[-2:]).succeeds()["held_bytes"] > 0
    (broken,) = receiver.events("not_renewed")
    assert "carol" in broken["reason"]
    assert receiver.events("user_renewed")[0]["user"] == "bob"
    (ended,) = receiver.events("transfer_refused")
    assert ended["user"] == "alice"


def test_a_directory_that_leads_elsewhere(many: Many, tmp_path: Path) -> None:
    """It is followed neither at the start nor later; the others go on."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    many.home("alice").symlink_to(elsewhere)
    many.home("bob").write_text("no directory")
    receiver = many.receiver()
    address = Pair.address(receiver)
    file = many.pair.file("f", 1000)
    for user in ("alice", "bob"):
        assert str(many.home(user)) in many.send(user, file, address).fails(4, "destination")
    sender = many.send("carol", many.pair.file("g", SIZE // 2), address, *SLOW)
    many.moving("carol", many.pair.source / "g", sender)
    many.home("carol").rename(tmp_path / "carol")
    many.home("carol").symlink_to(elsewhere)
    many.send("carol", file, address).fails(4, "destination")
    sender.fails(4, "destination")
    assert not any(elsewhere.iterdir())
    assert [line["user"] for line in receiver.events("no_directory")] == ["alice", "bob"]


def test_the_id_of_another_users_transfer_is_of_no_use(many: Many) -> None:
    """Neither for data nor for control; whatever is proved, the answer is that to an id that nobody has."""
    receiver = many.receiver()
    address = Pair.address(receiver)
    sample = Sample.random(1, 100_000, 50_000)
    with (
        RawSender(address, token=many.token("alice")) as alice,
        RawSender(address, token=many.token("bob")) as bob,
        RawSender(address, token=many.token("bob")) as unknown,
    ):
        alice.offer(sample).expect(m.Needed)
        bob.transfer_id = alice.transfer_id
        refusals = [sender.refused(m.Role.DATA) for sender in (bob, unknown)]
        assert len({(each.code, each.reason) for each in refusals}) == 1
        assert refusals[0].code is Code.UNKNOWN_TRANSFER
        assert receiver.wait_for("connection_refused", count=2)["user"] == "bob"
        other = Sample.random(2, 100_000, 50_000)
        control = bob.offer(other)
        control.expect(m.Needed)
        link, own = alice.data(), bob.data()
        for sender, connection in ((sample, link), (other, own)):
            connection.send_raw(sender.chunk(0) + sender.chunk(1))
            assert sorted(acknowledged(connection, 2)) == [0, 1]
        control.send(other.finish)
        control.expect(m.Complete)
    assert (many.home("bob") / "sample.bin").read_bytes() == other.content
    assert not (many.home("alice") / "sample.bin").exists()


def test_nobody_is_kept_out_by_one_who_takes_all(many: Many) -> None:
    """Of the places for transfers. The receiver ends with the first file that is complete (--once)."""
    receiver = many.receiver("--once")
    address = Pair.address(receiver)
    with RawSender(address, token=many.token("alice")) as greedy:
        for number in range(32):
            greedy.transfer_id = bytes([number]) * 16
            greedy.control()
        greedy.transfer_id = bytes([32]) * 16
        assert greedy.refused(m.Role.CONTROL).code is Code.LIMIT
        many.send("bob", many.pair.file("f", 1000), address).succeeds()
    assert receiver.wait() == 0
    assert same(many.pair.source / "f", many.home("bob") / "f")
