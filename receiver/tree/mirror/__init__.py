"""An exact mirror: what a manifest does not list is removed below the directories that it lists ("Deleting").

1. `depth_first`  follows the manifest entry by entry, and tells when all of a directory has come;
2. `mirror`       keeps which names a directory has in the manifest, and hands it on when it is complete;
3. `extras`       looks into that directory at the destination, and finds what is to be removed;
4. `removal`      removes it, or tells what it would remove; it follows no symlink and leaves mounts alone.

In memory are the names of the directories that lead to the latest entry, some 32 bytes each.
"""
