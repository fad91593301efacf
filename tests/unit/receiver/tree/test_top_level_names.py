"""The table of the names that a tree holds to its end."""

import random

from receiver.tree.top_level_names import Names


def test_names_are_found_and_others_are_not(seed: int) -> None:
    names = Names()
    rng = random.Random(seed)
    added = [rng.randbytes(rng.randrange(1, 40)) + b"!" for _ in range(20_000)]
    for name in added:
        names.add(name)
        names.add(name)
    assert all(name in names for name in added)
    assert not any(name + b"?" in names for name in added)
    assert names.growth_bytes(0) == 0
    assert 8 * 20_000 < names.growth_bytes(60_000) <= 8 * 4 * 80_000
