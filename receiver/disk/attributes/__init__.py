"""What a file has besides its bytes: owner, mode, ACL, extended attributes, times, and what its directory hands down.

1. `inheritance`   makes a staged file as its final directory would have it: group, ACL, project, flags;
2. `attributes`    sets owner, ACL, mode, extended attributes and times, in one order for everything;
   `acl`           reads POSIX ACLs; `policy` says what follows where modes or times can't be set;
3. `stored_times`  says whether a file under its final name has the mtime of an entry, as far as its file system keeps
                   times.
"""
