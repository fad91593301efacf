"""The values of the metrics: true after the clock was set, never falling where they are totals, and not too many."""

import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from filestreamer.telemetry.counters import TransferCounters
from filestreamer.telemetry.history import RECENT, History, Snapshot, UserSums
from filestreamer.telemetry.metrics import ENDED_CONNECTIONS, Collector, exposition
from filestreamer.telemetry.wall_clock import WallClock
from filestreamer.wire.messages import RECEIVER_STAGES


class Source:
    """A receiver without a destination and without a limit."""

    def __init__(self) -> None:
        self.history = History(60)
        self.running: list[TransferCounters] = []
        self.names: list[str] | None = None
        """The users, if the receiver has users."""

    def snapshot(self) -> Snapshot:
        return self.history.snapshot(self.running)

    def free_bytes(self) -> int | None:
        return None

    def memory(self) -> tuple[int, int] | None:
        return None

    def users(self) -> dict[str, UserSums] | None:
        return None if self.names is None else self.history.users(self.running, self.names)


def values(source: Source, name: str) -> dict[str, float]:
    """Return the samples of a metric by the first 8 digits of their transfer and, where there is one, connection."""
    text = exposition(Collector("receiver", source), "").body.decode()
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == f"filestreamer_receiver_{name}":
                found[" ".join(filter(None, map(sample.labels.get, ("transfer", "connection"))))] = sample.value
    return found


def value(source: Source, name: str) -> float:
    (found,) = values(source, name).values()
    return found


def transfer(number: int, *, connections: int = 2, moved_bytes: int = 1000) -> TransferCounters:
    made = TransferCounters(number.to_bytes(4, "big") * 4, "f", RECEIVER_STAGES)
    for connection_id in range(connections):
        connection = made.add_connection(connection_id)
        connection.moved_bytes = moved_bytes
        connection.acknowledged_bytes = moved_bytes // 2
    return made


# --- users


def of_user(source: Source, name: str, **labels: str) -> dict[str, float]:
    """Return the samples of a metric by user."""
    text = exposition(Collector("receiver", source), "").body.decode()
    return {
        sample.labels["user"]: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == f"filestreamer_receiver_{name}" and labels.items() <= sample.labels.items()
    }


def test_users_are_told_apart() -> None:
    """Sums stay where transfers are dropped; a user who is gone disappears, and begins anew."""
    source = Source()
    assert of_user(source, "user_transfers_under_way") == {}
    source.names = ["alice", "bob"]
    assert of_user(source, "user_transfers_total", result="failed") == {"alice": 0, "bob": 0}
    ended = [transfer(number, connections=1, moved_bytes=10) for number in range(RECENT + 3)]
    for each in ended:
        each.user = "alice"
        source.history.add(each, "complete")
    running = transfer(999, connections=1, moved_bytes=7)
    running.user = "bob"
    source.running = [running, ended[-1]]  # which is not removed yet
    assert of_user(source, "user_received_bytes_total") == {"alice": 10 * (RECENT + 3), "bob": 7}
    assert of_user(source, "user_transfers_under_way") == {"alice": 0, "bob": 1}
    assert of_user(source, "user_transfers_total", result="complete") == {"alice": RECENT + 3, "bob": 0}
    source.names = ["bob"]
    assert of_user(source, "user_received_bytes_total") == {"bob": 7}
    source.names = ["alice", "bob"]
    assert of_user(source, "user_transfers_total", result="complete") == {"alice": 0, "bob": 0}


# --- a clock that is set


class Clocks:
    """The two clocks of a machine: one only goes on, the other one can be set."""

    def __init__(self) -> None:
        self.monotonic, self.wall = 5000.0, 1e9

    def go_on(self, seconds: float) -> None:
        self.monotonic += seconds
        self.wall += seconds


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    made = Clocks()
    monkeypatch.setattr(time, "monotonic", lambda: made.monotonic)
    monkeypatch.setattr(time, "time", lambda: made.wall)
    return made


def running_for(seconds: float, clocks: Clocks) -> Source:
    """Return a source with a transfer that began so long ago, and made progress a second ago."""
    source = Source()
    source.running = [transfer(1)]
    source.running[0].started_at = clocks.monotonic
    clocks.go_on(seconds - 1)
    source.running[0].last_progress_at = clocks.monotonic
    clocks.go_on(1)
    return source


@pytest.mark.parametrize("step_seconds", [-20 * 365 * 86400, -7200, -600, 600, 7200, 20 * 365 * 86400])
def test_a_clock_that_is_set_moves_dates_and_no_age(clocks: Clocks, step_seconds: float) -> None:
    source = running_for(100, clocks)
    values(source, "transfer_start_time_seconds")
    clocks.wall += step_seconds

    assert value(source, "transfer_last_progress_age_seconds") == pytest.approx(1)
    assert value(source, "transfer_last_progress_time_seconds") == pytest.approx(clocks.wall - 1)
    assert value(source, "transfer_start_time_seconds") == pytest.approx(clocks.wall - 100)


def test_dates_stay_exactly_as_they_are_while_a_clock_is_only_adjusted(clocks: Clocks) -> None:
    wall_clock = WallClock()
    date = wall_clock.date(clocks.monotonic)
    for _ in range(9):
        clocks.wall += 0.1
        assert wall_clock.date(clocks.monotonic) == date
    clocks.wall += 0.1001

    assert wall_clock.date(clocks.monotonic) == pytest.approx(date + 1.0001)


def test_the_age_of_a_transfer_that_has_ended_stays(clocks: Clocks) -> None:
    source = running_for(100, clocks)
    ended = source.running.pop()
    ended.ended_at = clocks.monotonic
    source.history.add(ended, "failed")
    clocks.go_on(50)

    assert value(source, "transfer_last_progress_age_seconds") == pytest.approx(1)


# --- totals


def test_totals_never_fall(monkeypatch: pytest.MonkeyPatch) -> None:
    """While transfers begin, go on, begin again at a restarted receiver, end, and lose their series."""
    source, before = Source(), {"received_bytes_total": 0.0, "acknowledged_bytes_total": 0.0}
    for number in range(3 * RECENT):
        begun = transfer(number, connections=1 + number % 64)
        source.running.append(begun)
        _check_totals(source, before)
        begun.connections[0].moved_bytes += 7
        if number % 5 == 0:
            begun.start_over()
        _check_totals(source, before)
        if number % 3:
            source.history.add(source.running[0], "complete")  # for a moment it is in both
            _check_totals(source, before)
            source.running.pop(0)
        _check_totals(source, before)
    moved = sum((1 + number % 64) * 1000 + 7 for number in range(3 * RECENT))
    assert before["received_bytes_total"] == moved


def test_what_another_transfer_goes_on_with_stays_in_the_totals() -> None:
    """It has no result, and is shown no more."""
    source = Source()
    first, second = transfer(1), transfer(2)
    source.running = [first]
    moved = source.snapshot().totals["moved_bytes"]
    source.history.replaced(first)
    assert source.snapshot().totals["moved_bytes"] == moved > 0
    source.running = [second]
    snapshot = source.snapshot()
    assert snapshot.totals["moved_bytes"] == 2 * moved
    assert snapshot.transfers == [second]
    assert sum(source.history.results.values()) == 0
    source.history.add(first, "failed")  # its result is that of the run where nothing goes on with it after all
    assert source.snapshot().totals["moved_bytes"] == 2 * moved
    assert source.history.results["failed"] == 1


def _check_totals(source: Source, before: dict[str, float]) -> None:
    totals = source.snapshot().totals
    now = {"received_bytes_total": totals["moved_bytes"], "acknowledged_bytes_total": totals["acknowledged_bytes"]}
    assert all(now[name] >= before[name] for name in before)
    before.update(now)


def test_totals_are_told() -> None:
    source = Source()
    source.history.add(transfer(1), "complete")
    source.running = [transfer(2)]

    assert value(source, "received_bytes_total") == 4000
    assert value(source, "acknowledged_bytes_total") == 2000


# --- how many series there are


def test_connections_that_ended_have_few_series_and_transfers_all() -> None:
    source = Source()
    for number in range(RECENT):
        source.history.add(transfer(number, connections=16), "complete")
    source.running = [transfer(1000 + number, connections=16) for number in range(RECENT)]

    shown = {label.partition(" ")[0] for label in values(source, "connection_received_bytes_total")}
    latest = {transfer(number).transfer_id.hex()[:8] for number in range(RECENT - ENDED_CONNECTIONS // 16, RECENT)}
    assert shown == latest | {each.transfer_id.hex()[:8] for each in source.running}
    assert len(values(source, "transfer_acknowledged_bytes")) == 2 * RECENT


def test_the_latest_transfer_keeps_its_connections() -> None:
    source = Source()
    for number in range(3):
        source.history.add(transfer(number, connections=256), "complete")

    labels = set(values(source, "connection_up"))
    assert labels == {f"00000002 {connection_id}" for connection_id in range(256)}


# --- labels


def test_no_series_is_there_twice_whatever_ids_senders_choose() -> None:
    """Ids that begin alike, and equal ids of two users; a transfer that is started again keeps its series."""
    source = Source()
    for tail, user in ((b"one", "alice"), (b"two", "alice"), (b"two", "bob")):
        each = transfer(1)
        each.transfer_id, each.user = each.transfer_id[:4] + tail, user
        source.running.append(each)
    text = exposition(Collector("receiver", source), "").body.decode()
    series = [line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")]
    assert sorted(set(series)) == sorted(series)
    labels = {"00000001", "00000001-2", "00000001-3"}
    assert set(values(source, "transfer_size_bytes")) == labels

    first, second, _ = source.running
    source.history.add(second, "failed")
    again = transfer(1)
    again.transfer_id, again.user, again.size_bytes = second.transfer_id, second.user, 5
    source.running[1] = again
    source.running.remove(first)
    assert values(source, "transfer_size_bytes") == {"00000001-2": 5, "00000001-3": 0}
