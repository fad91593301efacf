"""Looks at the destination for each entry, and makes what needs no bytes.

1. `entry_preparer`  prepares each entry of a part: directories, symlinks and empty files are made, files are looked at;
   `locations`       finds the directory of an entry, what has its name, and what is in the way;
   `folding`         finds names that the destination does not tell apart;
2. `held_files`      corrects the attributes of files that were compared, and stay as they are;
3. `hard_links`      makes the further names of files, when all files are in place;
4. `entry_preparer`  sets the attributes of directories at the end.
"""
