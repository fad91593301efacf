"""What dials the connections of a transfer, where the sender does not (proto/README.md, "Where the receiver dials")."""

from typing import Protocol


class Dialling(Protocol):
    """Any thread may call; nothing here waits."""

    def want(self, connections: int) -> None:
        """Have so many data connections open from now on."""
        ...

    def control_lost(self) -> None:
        """Dial control again."""
        ...

    def connection_lost(self) -> None:
        """Look whether a data connection is to be dialled again."""
        ...
