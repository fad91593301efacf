"""An exact mirror: what a manifest does not list is removed below the directories that it lists ("Deleting").

1. `deleter`      takes these steps for a tree, when all of its files are in place;
2. `depth_first`  follows the manifest entry by entry, and tells when all of a directory has come;
3. `mirror`       keeps which names a directory has in the manifest, and hands it on when it is complete;
4. `extras`       looks into that directory at the destination, and finds what is to be removed;
5. `removal`      removes it, or tells what it would remove; it follows no symlink and leaves mounts alone.

In memory are the names of the directories that lead to the latest entry, some 32 bytes each.
"""
