"""What a transfer was bound by, computed from the time that its data connections spent in each stage, on both ends.

    end        works                       waits for the other end
    sender     read, digest                send, wait_ack
    receiver   digest, write, acknowledge  receive

Either end may also wait for its own rate limit (limit).

An end that is busy with work all the time makes the other end wait. Where both ends wait, they wait for the network. So
each kind of work has a share of its end's time, the network has the smaller share of the two ends' waiting, and the
largest share is the bottleneck.
"""

from collections.abc import Mapping, Sequence
from typing import Final, Literal

from filestreamer.wire.messages import RECEIVER_STAGES, SENDER_STAGES

Bottleneck = Literal["source_read", "digest", "network", "destination_write", "acknowledgements", "rate_limit"]

TEXTS: Final[Mapping[Bottleneck, str]] = {
    "source_read": "reading the source",
    "digest": "computing digests",
    "network": "the network",
    "destination_write": "writing at the destination",
    "acknowledgements": "the receiver's acknowledgements",
    "rate_limit": "--rate-limit",
}


def bottleneck(sender: Sequence[int], receiver: Sequence[int]) -> Bottleneck | None:
    """Name the bottleneck, given the time in each of SENDER_STAGES and RECEIVER_STAGES; None where one is not known."""
    at_sender, at_receiver = _shares(SENDER_STAGES, sender), _shares(RECEIVER_STAGES, receiver)
    if at_sender is None or at_receiver is None:
        return None
    shares: dict[Bottleneck, float] = {
        "network": min(at_sender["send"] + at_sender["wait_ack"], at_receiver["receive"]),
        "source_read": at_sender["read"],
        "digest": max(at_sender["digest"], at_receiver["digest"]),
        "destination_write": at_receiver["write"],
        "acknowledgements": at_receiver["acknowledge"],
        "rate_limit": max(at_sender["limit"], at_receiver["limit"]),
    }
    return max(shares, key=lambda name: shares[name])


def _shares(stages: Sequence[str], times: Sequence[int]) -> dict[str, float] | None:
    """Return the share of each stage, 0 to 1; None where times are missing. Unknown stages are ignored."""
    times = times[: len(stages)]
    total = sum(times)
    if len(times) < len(stages) or not total:
        return None
    return {stage: time / total for stage, time in zip(stages, times, strict=True)}
