"""Trees from a real sender to a real receiver: what is moved arrives as it is, what is not is told."""

from pathlib import Path
from typing import Any

import pytest

from tests.support import trees
from tests.support.services import Pair, Service


def send(pair: Pair, *args: object, receiver: tuple[object, ...] = ()) -> dict[str, Any]:
    """Send what is named to a receiver of its own, to the end; return the sender's result."""
    there = pair.receiver("--once", *receiver)
    sent = pair.start("sender", *args, "--to", pair.address(there)).succeeds()
    received = there.succeeds()
    for key in ("bytes", "files", "chunks", "root_digest", "unchecked_bytes", "held_bytes"):
        assert sent[key] == received[key], key
    return sent


def falls_short(sender: Service, *paths: Path) -> list[str]:
    """Wait for the end of a sender that could not read these: exit 4, everything else is there. Return the reasons."""
    assert sender.wait() == 4, sender.stderr
    assert "Traceback" not in sender.stderr
    result = sender.result
    assert (result["status"], result["committed"], result["exit_code"]) == ("failed", True, 4)
    assert result["error"]["code"] in ("source", "source_changed")
    assert "\n" not in result["error"]["message"]
    assert {str(path) for path in paths} == {entry["path"] for entry in result["skipped"]}
    assert len(paths) == result["skipped_files"]
    assert str(paths[0]).isprintable() is False or str(paths[0]) in result["error"]["message"]
    return [entry["reason"] for entry in result["skipped"]]


# ----------------------------------------------------------------------------------------------------------- everything


@pytest.mark.parametrize("chunk_size", [None, "8KiB", "1000"])
def test_every_oddity(pair: Pair, chunk_size: str | None) -> None:
    tree = trees.every_oddity(pair.source / "tree")
    more = ["--chunk-size", chunk_size] if chunk_size else []
    sent = send(pair, tree, "--connections", 3, *more)
    assert trees.differences(tree, pair.destination / "tree") == []
    assert sent["skipped_files"] == 0
    again = send(pair, tree, "--connections", 3, *more)
    assert trees.differences(tree, pair.destination / "tree") == []
    assert (again["sent_bytes"], again["bytes"]) == (0, again["unchecked_bytes"])
    assert pair.received() == ["tree"]
