"""The coordinator's handling of withdrawn files: leave them out, send Withdrawn, try them again (`second_tries`).

`dispatch.withdrawn_files` keeps which files are withdrawn, and which of them the receiver knows.
"""

from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.errors import Code
from filestreamer.wire.sockets.control_link import ControlLink
from sender.dispatch.answers import Answers
from sender.dispatch.manifest import Manifest, Withdrew
from sender.dispatch.part import Part
from sender.mailbox import Mailbox
from sender.second_tries import SecondTries
from sender.source.item import Unsendable
from sender.zeros import Zeros


class Withdrawals:
    """Handles the files that threads withdraw. For the coordinator's thread."""

    def __init__(
        self,
        manifest: Manifest,
        answers: Answers,
        zeros: Zeros,
        second_tries: SecondTries,
        *,
        link: ControlLink,
        mailbox: Mailbox,
    ) -> None:
        self._manifest = manifest
        self._answers = answers
        self._zeros = zeros
        self._second_tries = second_tries
        self._link = link
        self._mailbox = mailbox
        self._lost_groups: dict[int, m.SkipKind] = {}
        """Hard-link groups whose first name, which carries the bytes for all names, was withdrawn, and why."""
        self._is_rejoining = False
        """Whether no part was sent yet on this control connection."""

    def take(self, event: Withdrew) -> None:
        """Handle a file that a thread has withdrawn."""
        file_id, error = event.file_id, event.error
        part = self._manifest.part_of_file(file_id)
        assert part is not None  # a part is not dropped before this event was acted on
        item = part.item(file_id)
        self._second_tries.take(item, error)
        self._leave_out(file_id)
        if part.is_sent and self._link.state in ("manifest", "moving"):
            self._say((file_id,))
        self._manifest.withdrawn.take(file_id)
        if item.identity is not None and item.entry.hard_link_group:
            self._lost_groups[item.entry.hard_link_group] = error.kind
            for other in self._manifest.parts:
                self.withdraw_links(other)

    def take_declined(self, file_ids: list[int]) -> None:
        """Handle files that the receiver has declined, and that `SendQueue.withdraw_open` has withdrawn."""
        said = []
        for file_id in file_ids:
            part = self._manifest.part_of_file(file_id)
            assert part is not None  # as in `take`
            self._leave_out(file_id)
            if part.is_sent:
                said.append(file_id)
            self._manifest.withdrawn.take(file_id)
        if self._link.state in ("manifest", "moving"):
            for at in range(0, len(said), limits.FILES_PER_WITHDRAWN):
                self._say(tuple(said[at : at + limits.FILES_PER_WITHDRAWN]))

    def _leave_out(self, file_id: int) -> None:
        self._zeros.uncount(file_id)
        self._answers.withdraw(file_id)

    def withdraw_links(self, part: Part) -> None:
        """Withdraw the further names of files whose first name was withdrawn."""
        if not self._lost_groups:
            return
        for file_id, item in enumerate(part.items, part.first_file_id):
            kind = self._lost_groups.get(item.entry.hard_link_group)
            if item.identity is None and kind is not None:
                why = "it is another name of a file that could not be sent"
                error = Unsendable(Code.SOURCE, f"{item.shown}: {why}", kind, why)
                if withdrew := self._manifest.withdraw(file_id, error):
                    self._mailbox.post(withdrew)

    def begin_offer(self) -> None:
        """Begin with another control connection."""
        self._is_rejoining = True

    def say_again(self, part: Part) -> None:
        """Send Withdrawn for the withdrawn files of a part that was just sent.

        After the first part on a control connection, include all earlier files: the last messages on the lost control
        connection may not have arrived, and the receiver would expect a file that is left out here.
        """
        first = 0 if self._is_rejoining else part.first_file_id
        self._is_rejoining = False
        withdrawn = self._manifest.withdrawn.between(first, part.end_file_id)
        for at in range(0, len(withdrawn), limits.FILES_PER_WITHDRAWN):
            self._say(tuple(withdrawn[at : at + limits.FILES_PER_WITHDRAWN]))

    def _say(self, file_ids: tuple[int, ...]) -> None:
        self._link.say(m.Withdrawn(file_ids))
        self._manifest.withdrawn.said(file_ids)
