"""What a plain run imports: to start is most of what a small file costs."""

from tests.support.services import Pair, Service, fresh

NOT_NEEDED = set(
    "asyncio cryptography google.protobuf.internal.python_message grpc http multiprocessing pathspec prometheus_client"
    " pygments rich.console subprocess".split()
)
"""What only metrics, terminals, patterns and ssh need, what these import in turn, and protobuf in pure Python."""
NOT_NEEDED_BY_SENDERS = NOT_NEEDED | {"pathlib", "ssl"}
"""A receiver accepts connections from senders with TLS and without it by the same code."""


def imported(service: Service) -> set[str]:
    """Return the modules that a service has imported, as the interpreter lists them on standard error."""
    lines = [line for line in service.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip() for line in lines}


def test_a_plain_run_imports_no_more_than_it_uses(pair: Pair) -> None:
    told = {"PYTHONPROFILEIMPORTTIME": "1"}
    where = ("--listen", "127.0.0.1:0", "--directory", pair.destination, "--once")
    receiver = pair.start("receiver", *where, env=told, program=fresh("receiver"))
    to = pair.address(receiver)
    sender = pair.start("sender", pair.file("a", 1000), "--to", to, env=told, program=fresh("sender"))
    sender.succeeds()
    receiver.succeeds()

    assert {"click", "sender.coordinator", "structlog.processors", "xxhash"} <= imported(sender)
    assert {"click", "receiver.server.server", "structlog.processors", "xxhash"} <= imported(receiver)
    assert imported(sender) & NOT_NEEDED_BY_SENDERS == set()
    assert imported(receiver) & NOT_NEEDED == set()
