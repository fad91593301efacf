"""From the bytes of a small file to final names in the destination, thousands of files after one sync.

1. `small_file`    writes a small file, whole, into the staging of its tree;
2. `tree_staging`  is that staging: `.filestreamer/KEY.tree/`, locked, emptied at the start and removed at the end, one
                   in each place (`receiver.disk.place`) that the tree goes to;
                   `traits` finds there what the file system does otherwise: with modes, times, sizes and names;
   `inherited_files` makes files there with what their final directories hand down;
3. `committer`     gathers complete files, small and large, into batches; syncs the file system once for a batch, then
                   renames each file to its final name;
4. `directories`   opens the directory of each final name, component by component, and follows no symlink;
   `places`        tells which place it belongs to; `symlinks` makes a symlink in it, at once;
5. `declines`      reports the entries that meet an obstacle, and knows what follows from it for others.
"""
