"""The `receiver` command: settings, destination, listening sockets, token, then the server until its work is done.

Modules are imported where they are used: `receiver --help` loads next to nothing.
"""

import contextlib
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from filestreamer.process import descriptors, garbage, signals, stderr
from filestreamer.wire.errors import Interrupted

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from filestreamer.settings.address import Address
    from filestreamer.telemetry.monitor import Monitor
    from filestreamer.wire.sockets.route import Route
    from receiver.disk.destination import Destination
    from receiver.pipe.standard_output import OpenFile
    from receiver.server.client import Client
    from receiver.server.server import Server
    from receiver.server.token import Chosen
    from receiver.server.users import Users
    from receiver.settings import ReceiverSettings
    from receiver.transfer.asked import Asked

    Reached = tuple[ReceiverSettings, Route, Asked | None]


def main() -> NoReturn:
    """Run the command with this process's arguments and environment, and exit."""
    stderr.replace()
    signals.exit_on_signal()
    garbage.collect_seldom()
    over_ssh = {"serve": _serve_over_ssh, "relay": _relay}.get(sys.argv[1]) if len(sys.argv) == 2 else None
    signals.exit_process(over_ssh() if over_ssh is not None else run(sys.argv[1:], os.environ))


def _serve_over_ssh() -> int:
    """Receive for a sender that has started this over ssh; return the exit code."""
    with signals.deferred():
        from receiver import far_side
    descriptors.allow_all()
    return far_side.run(_clean_staging)


def _relay() -> int:
    """Carry one connection of a sender to the receiver that it has started over ssh; return the exit code."""
    from filestreamer.ssh.relay import relay

    return relay()


def run(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run the command; return its exit code (0 complete, 1 failed, 2 usage, 3 refused, 4 data, 5 partial, 128+N)."""
    try:
        with signals.deferred():
            from filestreamer.process import log
            from filestreamer.process.threads import as_failure, log_defects
            from filestreamer.telemetry.report import begin, report
            from filestreamer.telemetry.result import TransferResult
            from receiver.settings import parse
        with signals.raised():
            settings, warnings = parse(argv, environ)
        with signals.deferred():
            logger = log.configure("receiver", settings.log_level)
    except Exception as error:  # noqa: BLE001 - the top of the command: whatever happens, a result is reported
        return _fail(error, argv, environ)
    log_defects(logger)
    begin(settings.result_file, logger)
    for warning in warnings:
        logger.warning("unknown_variable", reason=warning)
    for warning in settings.exposed():
        logger.warning("secret_exposed", reason=warning)
    try:
        return _connect(settings, logger) if settings.dials else _serve(settings, logger)
    except Exception as error:  # noqa: BLE001 - the top of the command
        failure = as_failure("serving", error)
        report(TransferResult.without_transfer(failure), settings.result_file, logger)
        return failure.exit_code


def _fail(error: Exception, argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Report an error from before the settings are known; return the exit code."""
    # Imported again, as the error may be a signal in the middle of that.
    from filestreamer.telemetry.report import report_early

    return report_early(error, "receiver", argv, environ)


def _serve(settings: "ReceiverSettings", logger: Any) -> int:
    """Serve until the work is done; return the exit code. Raises what ends the service otherwise."""
    with signals.deferred():
        from filestreamer.credentials import certificate
        from filestreamer.listening.listeners import open_listeners
        from filestreamer.telemetry.monitor import Monitor
        from receiver.pipe.standard_output import OpenFile
        from receiver.server import token
        from receiver.server.server import Server
        from receiver.settings import METRICS
    with signals.raised():
        descriptors.allow_all()
        destination, output_name = _open_destination(settings)
        listeners = open_listeners(*settings.listen, str(settings.listen), logger)
        if not isinstance(destination, OpenFile):
            _clean_staging(settings, destination, logger)
        addresses = [listener.socket.getsockname() for listener in listeners]
        hosts = [str(address[0]) for address in addresses]
        chosen = token.choose(settings, destination, hosts, logger)
        if chosen.users is not None and not isinstance(destination, OpenFile):
            _look_at_homes(chosen.users.names, settings, destination, logger)
        free_bytes = None if isinstance(destination, OpenFile) else destination.free_bytes_at_path
        monitor = Monitor("receiver", settings, logger, free_bytes)
        server = Server(
            settings,
            destination,
            monitor,
            output_name=output_name,
            listeners=listeners,
            tokens=token.current(chosen, settings, destination, logger),
            tls=certificate.current(settings, hosts, chosen.token, logger),
            log=logger,
        )

        _watch(server, monitor, settings, logger, metrics=METRICS, users=chosen.users)
    _report_start(settings, addresses, destination.path, chosen, logger)
    return _run(server, monitor, logger)


def _connect(settings: "ReceiverSettings", logger: Any) -> int:
    """Receive from the sender at --connect, or from that of --from; return the exit code.

    Raises what ended it without a transfer.
    """
    with contextlib.ExitStack() as until_reported:
        return _receive_from(settings, logger, until_reported)


def _reached(settings: "ReceiverSettings", logger: Any) -> "AbstractContextManager[Reached]":
    """Return what leads to the sender, which it starts if need be."""
    if settings.fetch:
        from receiver.pull import started

        return started(settings, logger)
    from filestreamer.wire.sockets.route import TcpRoute

    to = settings.connect
    assert to is not None
    return contextlib.nullcontext((settings, TcpRoute(to.host, to.port, str(to)), None))


def _receive_from(settings: "ReceiverSettings", logger: Any, until_reported: contextlib.ExitStack) -> int:
    with signals.deferred():
        from filestreamer.telemetry.monitor import Monitor
        from receiver.pipe.standard_output import OpenFile
        from receiver.server.client import Client
    with signals.raised():
        descriptors.allow_all()
        destination, output_name = _open_destination(settings)
        if not isinstance(destination, OpenFile):
            _clean_staging(settings, destination, logger)
        free_bytes = None if isinstance(destination, OpenFile) else destination.free_bytes_at_path
        monitor = Monitor("receiver", settings, logger, free_bytes)
        settings, route, asked = until_reported.enter_context(_reached(settings, logger))
        client = Client(settings, destination, monitor, route=route, output_name=output_name, log=logger, asked=asked)

        _watch(client, monitor, settings, logger)
    return _run(client, monitor, logger)


def _watch(
    service: "Server | Client",
    monitor: "Monitor",
    settings: "ReceiverSettings",
    logger: Any,
    *,
    metrics: "Address | None" = None,
    users: "Users | None" = None,
) -> None:
    """Serve the metrics of a service, by default at `metrics`, and have signals end it."""
    from filestreamer.telemetry.report import reporting_overdue

    def stop(number: int) -> None:
        service.stop(Interrupted(number))
        monitor.stop_lingering()

    names = None if users is None else lambda: users.names
    monitor.watch(service.admission.counters, lambda: None, service.admission.memory, names)
    monitor.start(metrics)
    signals.on_signal(stop, reporting_overdue(settings.result_file, logger))


def _run(service: "Server | Client", monitor: "Monitor", logger: Any) -> int:
    """Run a service, with its progress shown; return the exit code. Raises what ended it without a result."""
    from filestreamer.terminal.display import ProgressDisplay

    progress = ProgressDisplay(service.admission.counters, logger, direction="receiving")
    progress.start()
    service.admission.on_few_threads = progress.stop  # a transfer needs a thread more than the display does
    try:
        return service.run()
    finally:
        progress.stop()
        monitor.stop()


def _report_start(
    settings: "ReceiverSettings", addresses: "list[Any]", directory: str, chosen: "Chosen", logger: Any
) -> None:
    """Log where this receiver listens, and what its senders need to be let in."""
    from filestreamer.wire.sockets.addresses import format_address

    for address in addresses:
        logger.info("listening", address=format_address(address), directory=directory)
    secure = ", and --tls" if settings.tls else ""
    if chosen.users is not None:
        hint = f"each user needs the token of its own: --token-file or FILESTREAMER_TOKEN{secure}"
        logger.info("users", path=chosen.path, users=len(chosen.users.names), hint=hint)
    elif chosen.is_own:
        logger.info("token", path=chosen.path, hint=f"this user's senders on this machine find it themselves{secure}")
    elif chosen.is_new and chosen.token is not None:
        from filestreamer.listening.command import show_command

        show_command("send", "filestreamer-sender FILE --to", chosen.token, addresses[0], tls=settings.tls)
    elif chosen.path is not None:
        logger.info(
            "token", path=chosen.path, hint=f"senders need this token: --token-file or FILESTREAMER_TOKEN{secure}"
        )


def _open_destination(settings: "ReceiverSettings") -> "tuple[Destination | OpenFile, bytes | None]":
    """Open the destination; return it, and the name of the one file of --output-file.

    It is a directory or, where --output-file is no plain file, an output, which has no name. Raises TransferFailed,
    UsageError.
    """
    from receiver.disk.destination import Destination
    from receiver.disk.paths import check_name
    from receiver.pipe.standard_output import Stdout, follow, open_special

    directory, output_name, path = settings.directory, None, settings.output_file
    if path is not None:
        special = Stdout() if settings.writes_stdout else open_special(path)
        if special is not None:
            return special, None
        directory, name = os.path.split(follow(path) if os.path.islink(path) else os.path.abspath(path))
        output_name = check_name(os.fsencode(name))
    destination = Destination(
        directory,
        replace=not settings.no_replace,
        replace_special=output_name is None,
        allow_privileged=settings.allow_privileged,
        allow_delete=settings.allow_delete,
    )
    if output_name is not None:
        destination.check_final(output_name)
    return destination, output_name


def _clean_staging(settings: "ReceiverSettings", destination: "Destination", logger: Any) -> None:
    """Delete old staging with --discard-staging-after; log what is left to be resumed, and what the disk lacks."""
    from receiver.disk.staging.sweep import discard_older_than, give_back_space

    destination.tell = lambda text: logger.warning("destination_lacks", reason=text)
    removed, left = discard_older_than(destination, settings.discard_staging_after, time.time())  # noqa: TID251 - file times
    if removed:
        logger.info("staging_discarded", files=removed)
    if (given_back := give_back_space(destination)) > 0:
        logger.info("space_given_back", bytes=given_back, reason="reserved by a receiver that was killed")
    if left:
        logger.info(
            "staging_found", files=left, hint="senders resume these files; --discard-staging-after removes them"
        )


def _look_at_homes(
    users: "Sequence[str]", settings: "ReceiverSettings", destination: "Destination", logger: Any
) -> None:
    """Do the same in the directory of each user who has one; warn of those that can't be used."""
    from filestreamer.wire.errors import TransferFailed

    for user in users:
        if os.path.lexists(os.path.join(destination.path, user)):
            log = logger.bind(user=user)
            try:
                home = destination.subdirectory(user)
            except TransferFailed as error:
                log.warning("no_directory", reason=f"{error}: nothing of this user can be taken")
                continue
            _clean_staging(settings, home, log)
            home.close()


if __name__ == "__main__":
    main()
