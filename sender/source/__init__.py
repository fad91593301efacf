"""The files and streams to send: finds, lists and reads them.

1. `walk`             walks the paths that the user names, and yields an `item` for each entry: the entry of the
                      manifest, and where it is read from;
   `directories`      opens each directory below these paths step by step, so that no symbolic link leads out of them;
   `patterns`         chooses by --include and --exclude;
   `skipped_entries`  counts and logs what can't be sent;
2. `listing`          is the thread that walks, and posts the items in parts; `part_budget` says when a part is full;
3. `chunk_size`       chooses the chunk size by the size of the file;
4. `reader`           reads the bytes, and finds out if a file changed since it was listed;
   `holes`            finds the holes of a sparse file, when it is its turn to be sent;
   `stream`           lists and reads standard input: it keeps each chunk until the chunk is acknowledged.
"""
