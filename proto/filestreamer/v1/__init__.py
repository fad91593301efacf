"""The protocol's messages as protobuf (wire.proto), and the code that is generated from them (wire_pb2)."""

from filestreamer import imports

# That makes messages in pure Python, and takes as long to import as the rest. protobuf imports it even where it makes
# them in C.
with imports.without("google.protobuf.internal.python_message"):
    from filestreamer.v1 import wire_pb2

__all__ = ["wire_pb2"]
