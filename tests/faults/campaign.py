"""A campaign of seeded cases: each draws a file, how it is sent, and what fails meanwhile, from its seed and number.

    python -m tests.faults.campaign                          300 cases of seed 0
    python -m tests.faults.campaign --seed 7 --cases 1000    others, and more
    python -m tests.faults.campaign --seed 7 --case 431      one of them again, with the logs of its services

One case:

    1  the real services start, a misbehaving proxy between them
    2  what was drawn happens: to connections at a byte, to processes and the disk at a moment of the transfer
    3  the sender ends by itself, within its time and with an exit code that the faults explain (or was killed)
    4  under the final name stands what stood there before, or the whole file
    5  what was drawn happens to the ledger and to the staged data, between the runs
    6  a run without faults completes: identical, only what was missing sent, nothing left in staging

The fault that a case is about goes in turns over KINDS, so that any run of len(KINDS) cases has all of them; up to two
more are drawn. FAULT_SEED names the seed where no flag does.
"""

import argparse
import contextlib
import dataclasses
import math
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from filestreamer.wire.grid import Grid
from tests.support.disks import MIB, disk, fill, scratch
from tests.support.proxy import (
    Blackhole,
    Cut,
    Delay,
    Direction,
    Fault,
    Flip,
    FlipFrame,
    FlipPayload,
    HalfOpen,
    Proxy,
    Reset,
    SlowReader,
    Stall,
    Truncate,
)
from tests.support.services import Pair, Service, make_file, same
from tests.support.services import pair as pair_in
from tests.support.staging import Staging

SEED: Final = int(os.environ.get("FAULT_SEED", "0"))
NAME: Final = "file"
IMPATIENT_SECONDS: Final = 4
PATIENT_SECONDS: Final = 60
END_SECONDS: Final = 45
OLD: Final = b"what stood there before"


# ------------------------------------------------------------------------------------ what happens besides connections


@dataclasses.dataclass(frozen=True)
class Moment:
    """When a share of the chunks is in the ledger, and `seconds` later."""

    share: float
    seconds: float


@dataclasses.dataclass(frozen=True)
class Kill:
    """`side` is killed (SIGKILL). A receiver starts again after a while, at the same port; a sender does not."""

    side: str
    moment: Moment
    restart_seconds: float = 0.0

    def strike(self, stage: "Stage") -> None:
        """Happen now."""
        stage.kill(self.side)
        if self.side == "receiver":
            time.sleep(self.restart_seconds)
            stage.start_receiver()


@dataclasses.dataclass(frozen=True)
class Freeze:
    """`side` stands still for a while (SIGSTOP, SIGCONT)."""

    side: str
    moment: Moment
    seconds: float

    def strike(self, stage: "Stage") -> None:
        """Happen now."""
        service = stage.service(self.side)
        service.signal(signal.SIGSTOP)
        time.sleep(self.seconds)
        service.signal(signal.SIGCONT)


@dataclasses.dataclass(frozen=True)
class Outage:
    """Every connection is lost, and none can be made for a while."""

    moment: Moment
    seconds: float

    def strike(self, stage: "Stage") -> None:
        """Happen now."""
        stage.proxy.refuse()
        stage.proxy.reset("*")
        time.sleep(self.seconds)
        stage.proxy.refuse(False)


@dataclasses.dataclass(frozen=True)
class FillDisk:
    """The destination's disk is filled, but for a few bytes, until the first run has ended."""

    moment: Moment
    leave_bytes: int

    def strike(self, stage: "Stage") -> None:
        """Happen now."""
        stage.ballast = fill(stage.destination, self.leave_bytes)


Event = Kill | Freeze | Outage | FillDisk


@dataclasses.dataclass(frozen=True)
class DamageLedger:
    """Between the runs: the ledger is torn, or some of its bytes are others, or it is gone."""

    how: str
    seed: int

    def strike(self, stage: "Stage") -> bool:
        """Happen now; whether there was a ledger."""
        generator = random.Random(self.seed)
        path = stage.staging.ledger
        if not path.exists() or not path.stat().st_size:
            return False
        size = path.stat().st_size
        if self.how == "torn":
            stage.staging.truncate_ledger(generator.randrange(size))
        elif self.how == "bytes":
            for _ in range(generator.randint(1, 8)):
                stage.staging.change_byte(path, generator.randrange(size), generator)
        elif self.how == "garbage":
            path.write_bytes(generator.randbytes(size))
        else:
            path.unlink()
        return True


@dataclasses.dataclass(frozen=True)
class DamageData:
    """Between the runs: some bytes of the staged data are others, or it is shorter, or gone."""

    how: str
    seed: int

    def strike(self, stage: "Stage") -> bool:
        """Happen now; whether there was any."""
        generator = random.Random(self.seed)
        path = stage.staging.data
        if not path.exists() or not path.stat().st_size:
            return False
        size = path.stat().st_size
        if self.how == "bytes":
            for _ in range(generator.randint(1, 8)):
                stage.staging.change_byte(path, generator.randrange(size), generator)
        elif self.how == "torn":
            os.truncate(path, generator.randrange(size))
        else:
            path.unlink()
        return True


@dataclasses.dataclass(frozen=True)
class KillResuming:
    """Between the runs: another one resumes, in which `side` is killed after a while; then the sender, in any case."""

    side: str
    seconds: float

    def strike(self, stage: "Stage") -> bool:
        """Happen now; whether there was anything to resume."""
        if not stage.staging.records:
            return False
        stage.sender = stage.send()
        time.sleep(self.seconds)
        if self.side == "receiver":
            stage.kill("receiver")
            stage.start_receiver()
        stage.kill("sender")
        return True


Damage = DamageLedger | DamageData | KillResuming


# ----------------------------------------------------------------------------------------------------------- a case


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """What one case is made of: `draw` makes it of its seed and number."""

    seed: int
    number: int
    kinds: tuple[str, ...]
    size: int
    chunk_size: int
    connections: int
    rate: int
    give_up_after: int
    has_old_file: bool
    plan: tuple[Fault, ...]
    events: tuple[Event, ...]
    damages: tuple[Damage, ...]

    @property
    def chunks(self) -> int:
        return Grid(self.size, self.chunk_size).segments

    @property
    def may_fail(self) -> set[tuple[int, str]]:
        """How the sender may end, besides well: exit codes, and their word in the result."""
        ends = set()
        if self.give_up_after == IMPATIENT_SECONDS:
            ends.add((1, "timeout"))
        if any(isinstance(event, FillDisk) for event in self.events):
            ends.add((4, "no_space"))
        return ends

    @property
    def longest_seconds(self) -> float:
        """What the first run may take."""
        return 60.0 + self.give_up_after + END_SECONDS


class Drawing:
    """Draws one case."""

    def __init__(self, seed: int, number: int) -> None:
        self._random = random.Random(f"filestreamer {seed} {number}")
        self.size = self._draw_size()
        least = max(1024, self.size // 2000)
        self.chunk_size = int(least * (max(least, min(4 * MIB, self.size)) / least) ** self._random.random())
        self.connections = self._random.choice([1, 2, 3, 4, 4, 8, 16])
        self._used = max(1, min(self.connections, -(-self.size // self.chunk_size)))  # connections that have a chunk
        self.plan: list[Fault] = []
        self.events: list[Event] = []
        self.damages: list[Damage] = []
        self.is_stuck = False
        """Whether something was drawn after which progress may stop until a connection counts as dead."""
        self.is_hopeless = False
        """Whether something was drawn that may keep happening until the sender gives up."""
        first = KINDS[number % len(KINDS)]
        more = self._random.sample(list(KINDS), self._random.choice([0, 0, 1, 2]))
        self.kinds = tuple(dict.fromkeys([first, *more]))
        for kind in self.kinds:
            DRAW[kind](self)
        # The first round is the one that runs with every change: it does not wait for what counts as dead after 30 s.
        patient = not self.is_stuck or (number >= len(KINDS) and self._random.random() < 0.3)
        patient = patient and not self.is_hopeless
        self.case = Case(
            seed=seed,
            number=number,
            kinds=self.kinds,
            size=self.size,
            chunk_size=self.chunk_size,
            connections=self.connections,
            rate=max(1024, int(self.size / self._random.uniform(0.5, 2.0))),
            give_up_after=PATIENT_SECONDS if patient else IMPATIENT_SECONDS,
            has_old_file=self._random.random() < 0.3,
            plan=tuple(self.plan),
            events=tuple(self.events),
            damages=tuple(self.damages),
        )

    def _draw_size(self) -> int:
        edges = [0, 1, 1023, 64 * 1024]
        if self._random.random() < 0.05:
            return self._random.choice(edges)
        return int(math.exp(self._random.uniform(math.log(200_000), math.log(12 * MIB))))

    # --- where and when

    def _where(self, *, on_all: bool = True) -> dict[str, Any]:
        """Draw a connection, a direction of it, and a byte."""
        direction: Direction = self._random.choice(["up", "up", "down"])
        if self._random.random() < 0.2:
            return {"on": "control", "direction": direction, "at": self._random.randrange(120)}
        on = "data *" if on_all and self._random.random() < 0.15 else f"data {self._random.randrange(self._used)}"
        share = int(0.8 * self.size / self._used) + 200
        at = self._random.randrange(share) if direction == "up" else self._random.randrange(150)
        return {"on": on, "direction": direction, "at": at}

    def _nth(self) -> int | None:
        """Draw whether it happens once, or each time that the connection is made."""
        if self._random.random() < 0.85:
            return 0
        self.is_hopeless = True
        return None

    def _moment(self) -> Moment:
        share = self._random.choice([0.0, *(self._random.uniform(0.0, 0.9) for _ in range(5)), 1.0])
        return Moment(round(share, 3), round(self._random.choice([0.0, self._random.uniform(0.0, 0.4)]), 3))

    def _seconds(self, longest: float) -> float:
        return round(self._random.uniform(0.1, longest), 2)

    # --- each kind of fault

    def cut(self) -> None:
        self.plan.append(Cut(nth=self._nth(), **self._where()))

    def reset(self) -> None:
        self.plan.append(Reset(nth=self._nth(), **self._where()))

    def truncate(self) -> None:
        self.plan.append(Truncate(lost=self._random.randint(1, 100_000), nth=self._nth(), **self._where()))

    def stall(self) -> None:
        self.plan.append(Stall(seconds=self._seconds(3.0), **self._where()))

    def delay(self) -> None:
        self.plan.append(Delay(on=f"data {self._random.randrange(self._used)}", seconds=self._seconds(6.0)))

    def blackhole(self) -> None:
        self.is_stuck = True
        self.plan.append(Blackhole(**self._where()))

    def half_open(self) -> None:
        self.plan.append(HalfOpen(**self._where()))

    def slow_reader(self) -> None:
        size, pause = self._random.choice([(100, 0.001), (1000, 0.002), (7919, 0.005)])
        span = self._random.randint(1, 1000) * size
        self.plan.append(SlowReader(bytes_per_read=size, pause_seconds=pause, span=span, **self._where()))

    def flip(self) -> None:
        """Draw any bit, wherever it is."""
        self.is_stuck = True  # where it makes a frame longer, the other end waits for the rest of it
        self.plan.append(Flip(bit=self._random.randrange(8), **self._where(on_all=False)))

    def flip_payload(self) -> None:
        chunk = self._random.randrange(max(1, -(-self.size // self.chunk_size)))
        at = self._random.randrange(min(self.chunk_size, self.size) + 1)
        again = self._random.random() < 0.2
        self.plan.append(FlipPayload(on="data *", chunk=chunk, at=at, bit=self._random.randrange(8), again=again))

    def flip_frame(self) -> None:
        self.is_stuck = True
        where = self._where(on_all=False) | {"at": self._random.randrange(16)}
        self.plan.append(FlipFrame(frame=self._random.randrange(1, 5), bit=self._random.randrange(8), **where))

    def outage(self) -> None:
        self.events.append(Outage(self._moment(), self._seconds(2.5)))

    def kill_receiver(self) -> None:
        self.events.append(Kill("receiver", self._moment(), self._seconds(1.0)))

    def kill_sender(self) -> None:
        self.events.append(Kill("sender", self._moment()))

    def freeze(self) -> None:
        side = self._random.choice(["sender", "receiver"])
        self.events.append(Freeze(side, self._moment(), self._seconds(3.0)))

    def disk_full(self) -> None:
        self.events.append(FillDisk(self._moment(), self._random.choice([0, 0, 4096, 100_000])))

    def damaged_ledger(self) -> None:
        self._kill_in_the_middle()
        how = self._random.choice(["torn", "bytes", "bytes", "bytes", "garbage", "gone"])
        self.damages.append(DamageLedger(how, self._random.randrange(1 << 30)))

    def damaged_data(self) -> None:
        self._kill_in_the_middle()
        how = self._random.choice(["bytes", "bytes", "torn", "gone"])
        self.damages.append(DamageData(how, self._random.randrange(1 << 30)))

    def kill_resuming(self) -> None:
        self._kill_in_the_middle()
        self.damages.append(KillResuming(self._random.choice(["sender", "receiver"]), self._seconds(1.2)))

    def _kill_in_the_middle(self) -> None:
        self.events.append(Kill("sender", Moment(round(self._random.uniform(0.2, 0.9), 3), 0.0)))


DRAW: Final[dict[str, Callable[[Drawing], None]]] = {
    "cut": Drawing.cut,
    "reset": Drawing.reset,
    "truncate": Drawing.truncate,
    "stall": Drawing.stall,
    "delay": Drawing.delay,
    "blackhole": Drawing.blackhole,
    "half-open": Drawing.half_open,
    "slow reader": Drawing.slow_reader,
    "flip": Drawing.flip,
    "flip payload": Drawing.flip_payload,
    "flip frame": Drawing.flip_frame,
    "outage": Drawing.outage,
    "kill receiver": Drawing.kill_receiver,
    "kill sender": Drawing.kill_sender,
    "freeze": Drawing.freeze,
    "disk full": Drawing.disk_full,
    "damaged ledger": Drawing.damaged_ledger,
    "damaged data": Drawing.damaged_data,
    "kill resuming": Drawing.kill_resuming,
}
KINDS: Final = tuple(DRAW)


def draw(seed: int, number: int) -> Case:
    """Make a case of its seed and number."""
    return Drawing(seed, number).case


# ------------------------------------------------------------------------------------------------------ running a case


class Stage:
    """The services of a case, while it runs."""

    def __init__(self, case: Case, pair: Pair, destination: Path) -> None:
        self.case = case
        self.destination = destination
        self.ballast: Path | None = None
        self.staging = Staging(destination, NAME)
        self.final = destination / NAME
        self.source = make_file(pair.source / NAME, case.size, case.number)
        self.struck: list[Fault | Event | Damage] = []
        self._pair = pair
        self.receivers: list[Service] = []
        self._listen = "127.0.0.1:0"
        if case.has_old_file:
            self.final.write_bytes(OLD)
        self.start_receiver()
        self.proxy = Proxy(self._listen, case.plan)
        self.sender = self.send(self.proxy.address)

    def start_receiver(self) -> None:
        """Start a receiver, at the port of the one before."""
        directory = ("--directory", self.destination)
        self.receivers.append(
            self._pair.start("receiver", "--listen", self._listen, *directory, "--log-level", "debug")
        )
        self._listen = self._pair.address(self.receivers[-1])

    def send(self, to: str = "", *settings: object) -> Service:
        """Start a sender, to the receiver itself unless told otherwise."""
        case = self.case
        command = ("--chunk-size", case.chunk_size, "--connections", case.connections, "--rate-limit", case.rate)
        return self._pair.sender(
            self.source,
            to or self._listen,
            *command,
            "--give-up-after",
            case.give_up_after,
            "--log-level",
            "debug",
            *settings,
        )

    def service(self, side: str) -> Service:
        """Return the sender, or the latest receiver."""
        return self.sender if side == "sender" else self.receivers[-1]

    def kill(self, side: str) -> None:
        """End a service as a crash would."""
        self.service(side).signal(signal.SIGKILL)
        self.service(side).wait()

    # --- the first run

    def play(self) -> int:
        """Let the events happen at their moments; return how the sender ended."""
        end = time.monotonic() + self.case.longest_seconds
        waiting = dict.fromkeys(self.case.events, math.inf)
        while self.sender.process.poll() is None:
            now = time.monotonic()
            assert now < end, f"the sender still runs after {self.case.longest_seconds:g} s"
            for event in list(waiting):
                if waiting[event] == math.inf and self._share() >= event.moment.share:
                    waiting[event] = now + event.moment.seconds
                if waiting[event] <= now:
                    del waiting[event]
                    self.struck.append(event)
                    event.strike(self)
            time.sleep(0.005)
        code = self.sender.wait()
        self.struck += self.proxy.struck
        self.proxy.close()
        return code

    def _share(self) -> float:
        return self.staging.records / self.case.chunks if self.case.chunks else 0.0

    def check_end(self, code: int) -> None:
        """Assert that the sender's end is one that the faults explain, and that it says so."""
        if code == 137 and any(isinstance(event, Kill) and event.side == "sender" for event in self.struck):
            return
        result = self.sender.result
        assert code == result["exit_code"]
        if code == 0:
            assert result["status"] == "complete"
            assert self.is_complete(), "exit 0, and the file is not there"
            return
        ends = self.case.may_fail | self._digest_ends()
        assert (code, result["error"]["code"]) in ends, f"exit {code}, {result['error']}"

    def _digest_ends(self) -> set[tuple[int, str]]:
        always = any(isinstance(fault, FlipPayload) and fault.again for fault in self.struck)
        return {(1, "digest")} if always else set()

    def check_final(self) -> None:
        """Assert that what stands under the final name is what stood there before, or the whole file."""
        if self.is_complete():
            return
        if self.case.has_old_file:
            assert self.final.read_bytes() == OLD, "the old file is neither whole nor replaced"
        else:
            assert not self.final.exists(), "a part of the file stands under its final name"

    def is_complete(self) -> bool:
        """Whether the whole file stands under its name."""
        return self.final.exists() and same(self.source, self.final)

    # --- between the runs, and the second

    def damage(self) -> None:
        """Let happen what is to happen between the runs: to staging while no receiver runs, then in a run by itself.

        The disk has room again: to damage what was never written takes some.
        """
        if self.ballast is not None:
            self.ballast.unlink()
        files = [damage for damage in self.case.damages if not isinstance(damage, KillResuming)]
        if files:
            self.kill("receiver")
            self.struck += [damage for damage in files if damage.strike(self)]
            self.start_receiver()
        runs = [damage for damage in self.case.damages if isinstance(damage, KillResuming)]
        self.struck += [damage for damage in runs if damage.strike(self)]

    def run_again(self) -> None:
        """Run without faults; assert that it completes, sends what is missing and leaves nothing."""
        self.sender = self.send(self._listen, "--rate-limit", "1GiB/s", "--give-up-after", PATIENT_SECONDS)
        result = self.sender.succeeds(PATIENT_SECONDS + END_SECONDS)
        assert self.is_complete(), "the next run exited with 0, and the file is not there"
        assert self.case.size == result["sent_bytes"] + result["held_bytes"] + result["unchecked_bytes"]
        end = time.monotonic() + END_SECONDS
        while os.listdir(self.destination) != [NAME]:
            assert time.monotonic() < end, f"this is left: {[str(path) for path in self.destination.rglob('*')]}"
            time.sleep(0.01)

    def finish(self) -> None:
        """End the receiver in order; assert that nobody met a bug of his own."""
        receiver = self.receivers[-1]
        receiver.signal(signal.SIGTERM)
        assert receiver.wait(2 * END_SECONDS) == 143
        for service in (self.sender, *self.receivers):
            for sign in ("Traceback", "a bug", '"internal"'):
                assert sign not in service.stderr, f"{sign} in the log of the {service.command}"


def kind_of(fault: Fault | Event | Damage) -> str:
    """Return which of KINDS a fault is."""
    if isinstance(fault, Kill):
        return f"kill {fault.side}"
    return _KIND_OF_CLASS[type(fault)]


_KIND_OF_CLASS: Final[dict[type, str]] = {
    Cut: "cut",
    Reset: "reset",
    Truncate: "truncate",
    Stall: "stall",
    Delay: "delay",
    Blackhole: "blackhole",
    HalfOpen: "half-open",
    SlowReader: "slow reader",
    Flip: "flip",
    FlipPayload: "flip payload",
    FlipFrame: "flip frame",
    Outage: "outage",
    Freeze: "freeze",
    FillDisk: "disk full",
    DamageLedger: "damaged ledger",
    DamageData: "damaged data",
    KillResuming: "kill resuming",
}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a case went."""

    case: Case
    verdict: str
    """recovered: in one run. resumed: by the next. failed."""
    struck: frozenset[str]
    """The KINDS that happened."""
    seconds: float
    trouble: str = ""
    logs: str = ""


def run(case: Case, root: Path) -> Outcome:
    """Run a case in an empty directory; whatever is wrong is in the outcome."""
    begun = time.monotonic()
    stage: Stage | None = None
    with pair_in(root) as pair, contextlib.ExitStack() as stack:
        destination = pair.destination
        if any(isinstance(event, FillDisk) for event in case.events):
            destination = stack.enter_context(disk(root / "small", 2 * case.size + 2 * MIB))
        verdict, trouble = "failed", ""
        try:
            stage = Stage(case, pair, destination)
            verdict = _run(stage)
        except Exception:  # noqa: BLE001 - a case that fails is counted, and told
            trouble = traceback.format_exc()
        finally:
            if stage is not None:
                stage.proxy.close()
        struck = frozenset(map(kind_of, stage.struck)) if stage else frozenset()
        logs = "" if verdict != "failed" else _logs(pair.logs)
    return Outcome(case, verdict, struck, time.monotonic() - begun, trouble, logs)


def _run(stage: Stage) -> str:
    code = stage.play()
    stage.check_end(code)
    stage.check_final()
    stage.damage()
    stage.check_final()
    stage.run_again()
    stage.finish()
    return "recovered" if code == 0 else "resumed"


def _logs(directory: Path) -> str:
    return "\n".join(
        f"--- {path.name}\n{path.read_text(errors='replace')[-6000:]}" for path in sorted(directory.iterdir())
    )


def run_in_scratch(case: Case) -> Outcome:
    """Run a case in a directory of its own."""
    with scratch(64 * MIB, Path.cwd()) as directory:
        return run(case, directory)


# ------------------------------------------------------------------------------------------------------- the campaign


def campaign(seed: int, numbers: Sequence[int], jobs: int) -> list[Outcome]:
    """Run cases, a few at a time; tell how it goes."""
    lock = threading.Lock()
    outcomes: list[Outcome] = []

    def one(number: int) -> None:
        outcome = run_in_scratch(draw(seed, number))
        with lock:
            outcomes.append(outcome)
            _tell(outcome, len(outcomes), len(numbers))

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, numbers))
    return outcomes


def _tell(outcome: Outcome, done: int, of: int) -> None:
    case = outcome.case
    line = f"[{done}/{of}] case {case.number}: {outcome.verdict} in {outcome.seconds:.1f} s ({', '.join(case.kinds)})"
    print(line, flush=True)
    if outcome.verdict == "failed":
        print(f"{case}\n{outcome.trouble}\n{outcome.logs}\nagain: --seed {case.seed} --case {case.number}", flush=True)


def table(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Yield the lines of the summary: what became of the cases with each fault."""
    columns = ("cases", "happened", "recovered", "resumed", "failed")
    yield f"{'fault':<16}" + "".join(f"{column:>12}" for column in columns)
    for kind in KINDS:
        with_it = [outcome for outcome in outcomes if kind in outcome.case.kinds]
        happened = [outcome for outcome in with_it if kind in outcome.struck]
        verdicts = Counter(outcome.verdict for outcome in with_it)
        numbers = [len(with_it), len(happened), *(verdicts[verdict] for verdict in columns[2:])]
        yield f"{kind:<16}" + "".join(f"{number:>12}" for number in numbers)
    verdicts = Counter(outcome.verdict for outcome in outcomes)
    happened = [outcome for outcome in outcomes if outcome.struck]
    numbers = [len(outcomes), len(happened), *(verdicts[verdict] for verdict in columns[2:])]
    yield f"{'all cases':<16}" + "".join(f"{number:>12}" for number in numbers)


def main() -> int:
    """Run the campaign; return 1 where a case failed."""
    parser = argparse.ArgumentParser(description="Break things, seeded, and see that files arrive.")
    parser.add_argument("--seed", type=int, default=SEED, help="default: FAULT_SEED, else 0")
    parser.add_argument("--cases", type=int, default=300, help="how many; default: 300")
    parser.add_argument("--case", type=int, default=None, help="only this one")
    parser.add_argument("--jobs", type=int, default=2 * (os.cpu_count() or 1), help="how many at a time")
    given = parser.parse_args()
    begun = time.monotonic()
    numbers = range(given.cases) if given.case is None else [given.case]
    outcomes = campaign(given.seed, numbers, given.jobs)
    if given.case is not None:
        print(outcomes[0])
    failed = [outcome.case.number for outcome in outcomes if outcome.verdict == "failed"]
    print(f"\nseed {given.seed}, {len(outcomes)} cases in {time.monotonic() - begun:.0f} s")
    print("\n".join(table(outcomes)))
    print(f"failed: {sorted(failed)}" if failed else "every file arrived, or was resumed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
