"""The entries of the manifest and their states: in memory while their part is active, on the disk before and after.

1. `archive`     takes each part of the manifest as it comes, and keeps it on the disk in a `spool`;
2. `spool`       is a file without a name (O_TMPFILE), as a manifest may have any length;
3. `part_state`  has the state of each file of one active part: what is to be sent, what is here;
4. `large_file`  has the segments of a file with several: in memory while the file is open, in the spool otherwise.

A part that is done goes back to the `archive`, with its states and digests; at the end the archive yields all digests
in order, for the root digest.
"""
