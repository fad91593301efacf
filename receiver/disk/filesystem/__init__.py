"""Where file systems differ: what this receiver asks the kernel about one, and what it does where something is missing.

1. `boundary`    says which directories a file can't be renamed between: other mounts, subvolumes, projects, policies
2. `sync`        makes files and directories durable: by one sync of all, or one for each where that reaches nothing
3. `inodes`      names a disk that is full because no inodes are left
4. `lock_file`   is the lock where the file system has no flock(2)
5. `kind`        says whether free space tells what fits, and whether space is worth taking ahead
"""
