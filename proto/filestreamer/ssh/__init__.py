"""One command from here to there: the other service is started over ssh (proto/README.md, "Started over ssh").

The near side is the command that the user has typed, the far side the service that ssh has started. The near side:

1. `remote`    reads [USER@]HOST:DIR and ssh://[USER@]HOST[:PORT]/DIR;
2. `command`   makes the command lines of ssh, after `ssh -G` has said how the user has configured it;
3. `children`  runs ssh, and reads what it says; `guard` leaves no process of it behind, however this one ends;
4. `far_side`  logs in, asks for the service by one line of JSON, and keeps it alive; `conversation` reads its answer;
5. `way`       finds out whether the far side can be reached directly; `round_trip` measures how far away it is;
6. `tunnels`   makes connections through ssh, where it can't;
7. `explain`   says in clear words why it did not come up; `said` shows what is said there in the log.

The far side:

8. `service`   reads that line, starts the service, answers, and ends with the near side; `places` has its address and
   its private directory, and `leases` holds it while ssh is lost and made anew; `home` reads paths as scp does;
9. `relay`     carries one connection between the standard streams of ssh and the service.

`lines` has what both sides say to each other.
"""
