"""One transfer at the receiver: what one sender offers, from its first connection to the report of its end.

`Transfer` makes the parts of the transfer, runs its coordinator, and ends everything. The server, the registry and
newer transfers see it from outside: they let connections in, and ask it to end.
"""

import threading
import time
from collections.abc import Callable
from typing import Any, Final

from filestreamer.process.rate_limit import RateLimit
from filestreamer.process.threads import run_to_end
from filestreamer.telemetry.counters import TransferCounters
from filestreamer.telemetry.result import TransferResult
from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.errors import Code, FilestreamerError, RemoteProtocolError, TransferFailed
from filestreamer.wire.progress_clock import Patience
from filestreamer.wire.sockets.control_link import ControlLink
from receiver.disk.report import Report
from receiver.file.rehash import Rehasher
from receiver.memory.budget import Account
from receiver.memory.process_limit import SocketLimits
from receiver.pipe.pipe_target import PipeTarget
from receiver.transfer.asked import Asked
from receiver.transfer.connection_set import ConnectionSet
from receiver.transfer.context import Context
from receiver.transfer.coordinator import Coordinator
from receiver.transfer.dialling import Dialling
from receiver.transfer.disk_worker import DiskWorker
from receiver.transfer.ending import Ending
from receiver.transfer.liveness import Liveness
from receiver.transfer.mailbox import Mailbox, Nudged
from receiver.transfer.names import Names
from receiver.transfer.syncer import Syncer
from receiver.transfer.target_opener import TargetOpener

CONTROL_FRAMES: Final = 4
"""Frames of a sender that are read and not acted on yet: further ones wait in its socket."""


class Transfer(threading.Thread):
    """Receives what one sender offers; its thread is the coordinator's. It is a `Claimant` of names."""

    def __init__(
        self,
        names: Names,
        hello: m.Hello,
        account: Account,
        patience: Patience,
        *,
        ended: "Callable[[Transfer, FilestreamerError | None], None]",
        log: Any,
        user: str = "",
        window_bytes: int = 64 * limits.MIB,
        socket_limits: SocketLimits | None = None,
        rate_limit: RateLimit | None = None,
        run: str = "",
        asked: Asked | None = None,
        dialling: Dialling | None = None,
        committed: "Callable[[Transfer], None] | None" = None,
    ) -> None:
        """Make a transfer for the first Hello of a sender. Nothing happens before `start`.

        `user` is whose transfer it is, where the receiver has users. `account` is closed at the end; then `ended` is
        called with the error that ended the transfer, or None.
        `window_bytes` is the most that a pipe may keep. `socket_limits` is read here where it is None. `rate_limit` is
        that of all transfers of this process. `run` is the receiver's own (--run). `asked` is what the receiver has
        asked for, if it takes nothing else. `dialling` dials the connections, if the sender does not. `committed` is
        called when everything is under its final name, before the sender learns of it; it may wait for a disk.
        """
        super().__init__(name=f"transfer-{hello.transfer_id.hex()[:8]}", daemon=True)
        self.transfer_id = hello.transfer_id
        self.user = user
        self.token: bytes | None = None
        """The token with which its last connection was let in: it goes on with that, even if the token is renewed."""
        self.account = account
        self.counters = TransferCounters(hello.transfer_id, "", m.RECEIVER_STAGES, user=user)
        self._ended = ended
        self._over = threading.Event()
        self.mailbox = Mailbox(self._over)
        self._link = ControlLink("receiver", CONTROL_FRAMES, self._over, "receiver" if dialling is None else "sender")
        self.connection_set = ConnectionSet(
            self.counters, hello.connections, account, self._over.is_set, socket_limits=socket_limits
        )
        rehasher = Rehasher(self.mailbox.post, self.mailbox.post, account)
        self.liveness = Liveness(
            self.counters,
            self._link,
            self.connection_set,
            rehasher,
            patience=patience,
        )
        self.context = Context(
            transfer=self,
            names=names,
            features=hello.features,
            account=account,
            counters=self.counters,
            over=self._over,
            mailbox=self.mailbox,
            link=self._link,
            connection_set=self.connection_set,
            rehasher=rehasher,
            disk_worker=DiskWorker(),
            syncer=Syncer(self.mailbox),
            liveness=self.liveness,
            report=Report(lambda: self.mailbox.post_now(Nudged())),
            log=log,
            job=hello.job,
            run=run,
            committed=lambda: committed(self) if committed is not None else None,
            rate_limit=rate_limit,
            asked=asked,
            dialling=dialling,
        )
        self._ending = Ending(self.context)
        self.opener = TargetOpener(self.context, window_bytes)
        self._coordinator = Coordinator(self.context, self._ending, self.opener)

    def check(self, hello: m.Hello) -> None:
        """Compare a further Hello with the first. Raises RemoteProtocolError where they don't fit together."""
        most = self.connection_set.most
        if hello.connections != most:
            raise RemoteProtocolError(f"{hello.connections} connections were announced, but {most} before")
        if hello.features != self.context.features:
            raise RemoteProtocolError("the connections of a transfer name different features")
        if hello.job != self.context.job:
            raise RemoteProtocolError("the connections of a transfer name different jobs")

    # --- for the server, the registry and newer transfers: questions

    @property
    def has_spent_output(self) -> bool:
        """Whether the output of the receiver has bytes of this transfer, so that it is of use to no other one."""
        return self.context.names.has_spent_output(self)

    @property
    def holds_name(self) -> bool:
        """Whether a transfer that does not hang has the name of this one, or is of its job. Requires a target."""
        return self.context.names.is_in_use(self.target_name, self.context.job)

    @property
    def is_complete(self) -> bool:
        """Whether everything is durable: committed or, for a shard, in staging."""
        return self._coordinator.complete is not None

    @property
    def is_committed(self) -> bool:
        """Whether everything is under its final name."""
        complete = self._coordinator.complete
        return complete is not None and complete.committed

    @property
    def target_name(self) -> bytes:
        """The name in the destination of the file, or of the root of the tree. Requires a target."""
        assert self.connection_set.target is not None
        return self.connection_set.target.name

    @property
    def root_digest(self) -> bytes | None:
        """The root digest of what was received, once the sender's Finish was right."""
        return self._coordinator.root_digest

    def outcome(self, error: FilestreamerError | None) -> TransferResult:
        """Return the result, now that the transfer has ended: with `error` unless it is complete."""
        return TransferResult.from_counters(
            self.counters,
            error=self.counters.shortfall() if self.is_complete else error,
            committed=self.is_committed,
            root_digest=self.root_digest,
        )

    @property
    def has_passed_on(self) -> bool:
        """Whether bytes of the transfer were written to an output: they can't be taken back."""
        target = self.connection_set.target
        return isinstance(target, PipeTarget) and target.chunks.has_begun

    @property
    def is_ending(self) -> bool:
        """Whether the transfer was asked to end, or is ending."""
        return self._ending.error is not None or self._over.is_set()

    @property
    def yields(self) -> bool:
        """Whether a newer transfer may take the names: the sender is gone or makes no progress, or all is complete."""
        return self.is_complete or self._over.is_set() or self.liveness.is_orphaned or self.liveness.is_stalled

    @property
    def hangs(self) -> str | None:
        """Why an ended transfer still has its names: one of its threads waits for a disk. None if none does."""
        return self._ending.hangs(is_running=self.is_alive())

    # --- for the server, the registry and newer transfers: requests

    def end_soon(self, error: FilestreamerError) -> None:
        """Ask the transfer to end with this error, before it acts on any other event. Never waits."""
        self._ending.ask(error)

    def end_by(self, deadline: float, error: FilestreamerError) -> None:
        """Ask the transfer to end by `deadline` (monotonic), when the process ends."""
        self._ending.deadline = deadline
        if self.is_complete:
            self.dismiss()
        self.end_soon(error)

    def dismiss(self) -> None:
        """Ask a complete transfer to end soon: it was only kept to send Complete again."""
        self._coordinator.is_dismissed = True
        self.mailbox.post_now(Nudged())

    def expel(self) -> None:
        """Ask the transfer to end soon, because its user is one no more; its connections prove nothing from now on."""
        self.token = None
        if self.is_complete:
            self.dismiss()
        else:
            reason = f"the token of user {self.user} was taken away: ask who runs this receiver"
            self.end_soon(TransferFailed(Code.TOKEN, reason))

    def yield_place(self) -> None:
        """Ask the transfer to end soon, because another one waits for its place. Its sender may begin again."""
        reason = "nothing was offered" if not self.liveness.has_listed else "there was no progress for too long"
        self.end_soon(TransferFailed(Code.TIMEOUT, f"{reason}, and another transfer needs the place"))

    def yield_to_newer(self) -> None:
        """Ask the transfer to end soon, because a newer one needs its names."""
        if self.is_complete:
            self.dismiss()
        else:
            self.end_soon(
                TransferFailed(Code.SUPERSEDED, "a newer transfer of the same name took the place of this one")
            )

    def cut(self) -> None:
        """Shut every connection, so that no thread waits for a peer any more."""
        channel = self._link.channel
        if channel is not None:
            channel.shut()
        self.connection_set.shut()

    # --- the thread

    def run(self) -> None:
        """Run the coordinator until the transfer is over; then end everything, and report that."""
        error = run_to_end("transfer", self._coordinator.run)
        # Each step is attempted even if another one fails or hangs: the server must always be told of the end.
        attempt = self._ending.attempt
        if error is not None:
            attempt("saying goodbye", lambda: self._link.say_goodbye(error))
        with self._coordinator.opening:
            self._over.set()
        attempt("releasing everything", self._ending.release)
        attempt("closing control", self._close_control)
        self.counters.ended_at = self.counters.ended_at or time.monotonic()
        attempt("giving memory back", self.account.close)
        attempt("the result", lambda: self._ended(self, error))
        attempt("turning connections away", self.mailbox.turn_away)

    def _close_control(self) -> None:
        self._coordinator.close_control(min(limits.CLOSING_SECONDS, self._ending.deadline - time.monotonic()))
