"""The form of the tables that say how each message is encoded and decoded."""

from collections.abc import Callable
from typing import Any

from filestreamer.v1 import wire_pb2 as pb
from filestreamer.wire import messages as m

Encoders = dict[type, Callable[[Any], pb.Frame]]
"""By the type of a message: what makes the frame body of it."""
Decoders = dict[str, Callable[[Any], m.Message]]
"""By the kind of a frame: what makes the message of its body."""
