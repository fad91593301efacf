"""The entries of the manifest and their states: in memory while their part is active, on the disk before and after.

1. `archive`     takes each part of the manifest as it comes, and keeps it on the disk, in the
2. `spool`       a file without a name, as a manifest may have any length;
3. `part_state`  the state of each file of one active part: what is to be sent, what is here; it refers to
4. `large_file`  the segments of a file that has several: in memory while the file is open, in the spool otherwise.

A part that is done goes back to the `archive`, with its states and digests; at the end the archive yields all digests
in order, for the root digest.
"""
