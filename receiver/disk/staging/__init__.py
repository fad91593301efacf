"""Incomplete files: staged, resumed by a later run, and committed under their final names.

1. `staging`         opens the two files of one staged file, new or left by an earlier run: KEY.data has the bytes at
                     their offsets, KEY.ledger says which of them are there;
   `lock`            keeps other processes away: a lock on KEY.ledger, until the staging is closed. The staging of a
                     tree is locked in the same way, by a file in it;
   `staged_file`     opens the bytes also where an earlier run had given them their final owner or mode.
2. `ledger_file`     loads the ledger and appends to it; `ledger` is its format (pure). A ledger is a hint: whatever it
                     claims is hashed again.
3. `staging`         writes bytes at their offsets; appends their digests to the ledger before they are acknowledged;
   `known_holes`     remembers the holes that chunks have told.
4. `staging`         commits: size, owner, mode, times; fsync of the file; rename; fsync of the directory; then the
                     ledger is removed. A crash between any two steps leaves the staged file or the final one, never
                     half a file under the final name. Where other shards are missing, it seals a share instead.
5. `closed_staging`  renames a large file of a tree, which was closed before: `receiver.tree.commit` has synced many of
                     them at once;
   `staged_copy`     copies it instead, where no file can be renamed into its final directory.
6. `shared_names`    names a large file that several shards of a tree write: its bytes, and a ledger for each share;
   `closed_share`    seals a share that was closed, and renames the file when all shares are sealed;
   `job_record`      keeps which shards of a tree are finished.

Beside that, `receipt` keeps what a run has committed, so that the same run, started again, knows that it is done, and
`job_record` which shards of a tree are finished, both in a `record_file`; `readable` reads and hashes files: staged
ones, and those under their final name, which are only compared; `sweep` discards what earlier runs left in staging and
no run resumed, and frees space that they had taken.
"""
