"""The objects that the modules of one transfer share."""

import threading
from collections.abc import Callable
from typing import Any

from filestreamer.process.rate_limit import RateLimit
from filestreamer.records import Record
from filestreamer.telemetry.counters import TransferCounters
from filestreamer.wire.sockets.control_link import ControlLink
from receiver.disk.report import Report
from receiver.file.rehash import Rehasher
from receiver.memory.budget import Account
from receiver.transfer.asked import Asked
from receiver.transfer.connection_set import ConnectionSet
from receiver.transfer.dialling import Dialling
from receiver.transfer.disk_worker import DiskWorker
from receiver.transfer.liveness import Liveness
from receiver.transfer.mailbox import Mailbox
from receiver.transfer.names import Claimant, Names
from receiver.transfer.syncer import Syncer


class Context(Record):
    """The parts of one transfer. `Transfer` makes them."""

    transfer: Claimant
    """The transfer itself, which claims names."""
    names: Names
    features: tuple[str, ...]
    """The features that the sender's first Hello named."""
    account: Account
    """The memory that the transfer may use for its peer."""
    counters: TransferCounters
    over: threading.Event
    """Set when the transfer ends: from then on no work is begun."""
    mailbox: Mailbox
    link: ControlLink
    connection_set: ConnectionSet
    rehasher: Rehasher
    disk_worker: DiskWorker
    syncer: Syncer
    liveness: Liveness
    report: Report
    """What can't be done for single entries, to be told to the sender."""
    log: Any
    job: str = ""
    """The job that the sender's first Hello named; empty where it has none."""
    run: str = ""
    """The run of this receiver; empty where it has none."""
    committed: Callable[[], None] = lambda: None
    """Called when everything is under its final name, and before the sender learns of it. It may wait for a disk."""
    rate_limit: RateLimit | None = None
    """That of all transfers of this process."""
    asked: Asked | None = None
    """What the receiver has asked for, where it has: it takes nothing else."""
    dialling: Dialling | None = None
    """What dials the connections; None where the sender does."""
