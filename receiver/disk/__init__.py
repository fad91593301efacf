"""The destination directory: incomplete files are staged in it, complete files are committed, no path leads out.

1. `paths`         checks the path that a sender gave, and derives KEY from it, under which the file is staged.
2. `destination`   is the open directory: it refuses names that can't be replaced, and checks that it is still at the
                   path that the user gave.
   `place`         is the destination, or a mount or the like below it: it opens its `.filestreamer/`, and counts its
                   free space. A file is staged in the place that it goes to. `sealed_shares` knows which shares of
                   large files this process has sealed there.
3. `existing`      says what becomes of a file that is there already.
4. `staging/`      stages a file, resumes it, and commits it.
   `space`         takes space ahead of its bytes, shared fairly by all files, makes holes, and gives back what was
                   taken and not written.
5. `attributes/`   sets what a file has besides its bytes, and gives it what its directory hands down.
6. `final_name`    has the rename that may not replace.

Beside that:

-  `filesystem/`   knows where file systems differ: boundaries, syncs, locks, inodes.
-  `obstacles`     tells an error that concerns one entry from one that concerns everything that is written here;
   `report`        collects what is told of entries to both users.
-  `descriptors`   shares the descriptors that this process may have among trees, and waits for one that is missing.
"""
