"""Lists what the user names: the entries of the manifest, and where each is read from.

1. `walk`             walks the paths that the user names, and yields a `source.item` for each entry;
   `files_from`       chooses by a list of paths, `mounts` by file system (by --include and --exclude: `wire.patterns`);
   `xattrs`           reads extended attributes, or says that some are left out;
   `hard_links`       finds the names of one file;
   `skipped_entries`  counts and logs what can't be sent;
2. `listing`          is the thread that walks, and posts the items in parts; `part_budget` says when a part is full;
3. `changed_files`    lists files again that changed while they were sent, when they are quiet;
4. `deletion`         says below which directories the receiver is to remove what is not listed (--delete).
"""
