"""A tree: from a ManifestPart that comes in to the times of its directories at the end (proto/README.md, "Trees").

 1. `tree_target`       is what the coordinator talks to. It takes each part of the manifest, keeps it on the disk
                        (`manifest/archive`), and takes it up when there is room: at most PARTS_ACTIVE (64) are active.
 2. `part_preparer`     prepares a part: it checks paths and free space, and looks for what an earlier run staged.
 3. `entries/`          prepares each entry: makes directories, symlinks and empty files, and looks at files that are
                        there. What meets an obstacle is declined (`commit/declines`), and everything else goes on.
                        `top_level_names` claims names, so that no other transfer writes there.
 4. `part_table`        finds the state of each part (`manifest/part_state`): active in memory, or archived on the disk.
 5. `answers`           tells the sender the state of each file: needed, or held with its digest.
 6. `tree_writer`       takes chunks from data connections. A small file is written whole (`commit/small_file`);
 7. `large_files`       opens, sets aside and opens again the large ones, each staged like a single file
                        (`manifest/large_file`); `open_files` says how many may be open, by descriptors and memory.
 8. `commit/committer`  puts complete files in place: one sync of the file system, then thousands of renames. A
                        part of which no file is pending goes back to the archive: there is room for the next one.
 9. `tree_target`       compares the root digest at Finish, and commits: the last files are put in place, then
10. `entries/`          makes the further names of files, and sets the modes and times of directories, deepest first.
                        `mirror/` removes what is not listed, if that was asked for. One more sync of the file system
                        makes all of it durable; then the sender is told Complete.

A shard of a tree (proto/README.md, "Shards of trees") takes the same way: `tree_shard` knows what is its own,
`manifest` leaves the segments of other shards out, and the last shard of all puts a shared file in place.

`cells` are hash tables for the names of a tree that has millions of them.

Locks, in the order in which a thread may take them: that of a part, that of a file (receiver/file), then at most
one of those of `part_table`, `open_files`, `committer`, `declines`, `spool` and `top_level_names`.
"""
