"""The destination directory: incomplete files are staged in it, complete files are committed, no path leads out.

The life of a staged file, in order:

1.  `paths`          checks the path that a sender gave, and derives KEY from it, under which the file is staged:
                     `.filestreamer/KEY.data` has the bytes at their offsets, KEY.ledger says which of them are there.
2.  `destination`    is the open directory: it refuses names that can't be replaced, and checks that it is still at the
                     path that the user gave.
    `place`          is the destination, or a mount or the like below it: it opens its `.filestreamer/`, and counts its
                     free space. A file is staged in the place that it goes to.
3.  `staging`        opens both files, new or left by an earlier run;
    `lock`           keeps other processes away: a lock on KEY.ledger, until the staging is closed. The staging of a
                     tree is locked in the same way, by its directory (`receiver.tree.commit.tree_staging`).
4.  `ledger_file`    loads the ledger and appends to it; `ledger` is its format (pure). A ledger is a hint: whatever it
                     claims is hashed again.
5.  `space`          takes space ahead of the bytes, shared fairly by all files; leaves holes out; gives back what was
                     taken and not written.
6.  `staging`        writes bytes at their offsets; appends their digests to the ledger before they are acknowledged.
7.  `staging`        commits: size, owner, mode, times; fsync of the file; rename; fsync of the directory; then the
                     ledger is removed. A crash between any two steps leaves the staged file or the final one, never
                     half a file under the final name. Where other shards are missing, it seals a share instead.
    `attributes`     sets owner, ACL, mode, extended attributes and times, in one order for everything;
    `final_name`     has the rename that may not replace.
8.  `closed_staging` renames a large file of a tree, which was closed before: `receiver.tree.commit` has synced many of
                     them at once.
    `staged_copy`    copies it instead, where no file can be renamed into its final directory.

Beside that:

-   `filesystem`     knows where file systems differ: boundaries, syncs, locks, inodes.
-   `obstacles`      tells an error that concerns one entry from one that concerns everything that is written here;
    `report`         collects what is told of entries to both users; `attribute_policy` says what follows where modes
                     or times can't be set.
-   `readable`       reads and hashes files: staged ones, and those under their final name, which are only compared.
-   `same`           says whether a file under its final name has the size and mtime of an entry, as far as its file
                     system keeps times.
-   `sweep`          discards what earlier runs left in staging and no run resumed, and frees space that they had taken.
-   `descriptors`    shares the descriptors that this process may have among trees, and waits for one that is missing.
"""
