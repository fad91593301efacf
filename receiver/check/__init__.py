"""A dry run: how the entries of a manifest stand at the destination. Nothing is written (proto/README.md, "Dry runs").

1. `check_target`  is what the coordinator talks to: it takes each part, and answers each entry;
2. `judge`         looks at the disk, and says what a transfer would do with an entry;
3. `room`          counts the space that all of it needs;
4. `verdicts`      gathers these verdicts into messages.

With --checksum, the digests of a file of equal size go before its verdict: the sender compares them. What would be
removed is found as a transfer finds it (receiver/tree/mirror).
"""
