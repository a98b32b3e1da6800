# SPDX-License-Identifier: Apache-2.0
"""Are copies of an agent each one of a kind, with a right clock and right memory? For the benchmark of
forks, over its own connection; the test of the same is tests/e2e/forks.py."""

import time

CLOCK_S = 0.05
IDENTITY = ("head -c 16 /dev/urandom | md5sum | cut -c 1-32; cat /etc/machine-id /proc/sys/kernel/random/boot_id; "
            "hostname; cat /run/kelpie/generation")
ITEMS = ("random bytes", "machine id", "boot id", "host name", "generation")


def clock_error(client, name):
    """Seconds between the guest's clock and ours: of several askings the quickest, against its middle."""
    best = None
    for _ in range(5):
        before = time.time()
        lines = client.exec(name, ["adjtimex"]).splitlines()
        after = time.time()
        told = {key.strip(): value for key, value in (line.split(":", 1) for line in lines if ":" in line)}
        guest = int(told["time.tv_sec"]) + int(told["time.tv_usec"]) / 1e6
        if best is None or after - before < best[0]:
            best = after - before, abs(guest - (before + after) / 2)
    return best[1]


def faults(client, names):
    """One line a fault. The first name is the agent that was forked: it counts for uniqueness."""
    found = []
    rows = {name: client.exec(name, ["sh", "-c", IDENTITY]).split() for name in names}
    for at, item in enumerate(ITEMS):
        values = [row[at] if len(row) == len(ITEMS) else None for row in rows.values()]
        if None in values or len(set(values)) != len(names):
            found.append(f"{item}: {len(set(values))} different ones in {len(names)} agents")
    for name in names:
        wrong = clock_error(client, name)  # the first answers of the guest are slow, and were given above
        if wrong > CLOCK_S:
            found.append(f"clock of {name}: wrong by {wrong * 1000:.0f} ms")
        pages = client.exec(name, ["@check"]).split()
        if pages[0] == "pages=0" or pages[1] != "bad=0":
            found.append(f"memory of {name}: {' '.join(pages)}")
    return found
