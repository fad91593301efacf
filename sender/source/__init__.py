"""The files and streams to send: finds, lists and reads them.

1. `walk`             walks the paths that the user names, and yields an `item` for each entry: the entry of the
                      manifest, and where it is read from;
   `directories`      opens each directory below these paths step by step, so that no symbolic link leads out of them;
   `file_systems`     says which file systems lie about sizes, and which number files anew;
   `patterns`         chooses by --include and --exclude, `files_from` by a list of paths, `mounts` by file system;
   `skipped_entries`  counts and logs what can't be sent;
2. `listing`          is the thread that walks, and posts the items in parts; `part_budget` says when a part is full;
   `changed_files`    lists files again that changed while they were sent, when they are quiet;
3. `chunk_size`       chooses the chunk size by the size of the file;
4. `reader`           reads the bytes, and finds out if a file changed since it was listed;
   `holes`            finds the holes of a sparse file, when it is its turn to be sent;
   `stream`           lists and reads standard input: it keeps each chunk until the chunk is acknowledged.
"""
