"""Reads the files and streams to send, and finds out whether they are still what was listed.

1. `item`             is an entry of the manifest, and where it is read from: it is opened only as what was listed;
   `directories`      opens each directory below the named paths step by step, so that no symbolic link leads out;
   `file_systems`     says which file systems lie about sizes, and which number files anew;
2. `chunk_size`       chooses the chunk size by the size of the file;
3. `reader`           reads the bytes, and finds out if a file changed since it was listed;
   `run_reader`       does so for the segments of a run of chunks together;
   `known_digests`    keeps the digests of what was read, for other receivers of the same files (--listen);
   `holes`            finds the holes of a sparse file, when it is its turn to be sent;
   `stream`           lists and reads standard input: it keeps each chunk until the chunk is acknowledged.
"""
