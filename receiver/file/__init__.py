"""A single file, or a shard's share of one; a tree uses the same parts for its large files.

1. `target`        the interface that files, trees and pipes have in common: a transfer receives into a target
2. `file_target`   a transfer of one file: answers the sender, compares the root digest, commits;
   `left_target`   the same for a file of which nothing is received, as what is there is left as it is (--existing)
3. `file_share`    the share of one transfer in the file: receives chunks, says what is needed and what is held;
   `answers`       puts that into messages
4. `shared_file`   the file itself, which all shards of a job share: opens the staging, says which shard commits
5. `chunk_states`  the state of every chunk, without any input or output: no write ever lands on a verified one;
   `states`        names the states, for the chunks of a file and for the files of a tree alike
6. `rehash`        hashes again what an earlier run left on the disk
"""
