"""The settings of both services: flags, environment variables and a config file.

1. `definition`   defines one setting as a dataclass field: its names, its default, its line in --help;
2. `common`       the settings that both services have; each service extends them in its own `settings` module;
   `source`       those of the source, which a receiver has as well, for the sender that it starts (--from);
3. `parse`        fills the settings of a service from flags, environment, config file and defaults, in this order;
4. `config_file`  reads the config file, and checks the keys of both services;
5. `values`       reads the value of a setting; `address` reads HOST:PORT, and `sizes` reads and writes sizes and rates;
6. `own_token`    the token that receivers and senders of one user on one machine share if they are given none;
7. `renewed`      reads files again when they have changed; `own_certificate` tells when this side's has expired;
8. `completion`   answers shells that complete a command line.
"""
