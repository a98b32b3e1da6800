#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Ten forks at once of a running agent: each its own machine, none with a bad page, all with the right time."""

import os
import sys
import time

os.environ["KELPIE_TEST_BACKEND"] = "qemu"
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from kit import World, check, equal, run_tests  # noqa: E402

FORKS = 10
CLOCK_MS = 50
IDENTITY = ("head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \\n'; echo; cat /etc/machine-id "
            "/proc/sys/kernel/random/boot_id; hostname; cat /run/kelpie/generation")
WHAT = ("random bytes", "machine id", "boot id", "host name", "generation")


def identity(node, name):
    words = node.cli("exec", name, "sh", "-c", IDENTITY).ok("exec").text().split()
    equal(len(words), len(WHAT), "lines of an identity")
    return words


def clock_off_ms(node, name):
    """Between guest and host; of several askings the one that took the least time, which is its uncertainty."""
    best = None
    for _ in range(8):
        before = time.time()
        lines = node.cli("exec", name, "adjtimex").ok("adjtimex").text().split("\n")
        after = time.time()
        words = dict(line.split(":", 1) for line in lines if ":" in line)
        told = int(words["    time.tv_sec"]) + int(words["    time.tv_usec"]) / 1e6
        if best is None or after - before < best[0]:
            best = (after - before, told - (before + after) / 2)
    return abs(best[1]) * 1000, best[0] * 1000


def test_ten_forks_at_once():
    with World() as world:
        node = world.node("a", spare=True)
        node.cli("run", "-d", "--name", "m").ok("run")
        node.cli("exec", "m", "@fill", "6", "3").ok("fill")
        names = node.cli("fork", "m", "-c", str(FORKS), "-q").ok("fork").text().split()
        equal(len(names), FORKS, "forks")
        time.sleep(1)
        everybody = [identity(node, name) for name in ["m", *names]]
        for at, what in enumerate(WHAT):
            equal(len({words[at] for words in everybody}), FORKS + 1, f"different: {what}")
        for name in names:
            off, took = clock_off_ms(node, name)
            check(off <= CLOCK_MS, f"the clock of {name} is {off:.0f} ms off, asked in {took:.0f} ms")
            equal(node.cli("exec", name, "@check").ok("check").text(), "pages=1536 bad=0\n", f"memory of {name}")
            agent = node.agent(name)
            equal(agent["uniqueness"], {"kernel_rng": "proven", "clock": "proven", "identity": "proven",
                                        "userspace_rng": "unproven"}, "what is proven")
            equal((agent["parent"], agent["generation"] != node.agent("m")["generation"]), ("m", True), "record")


if __name__ == "__main__":
    sys.exit(run_tests(sys.modules[__name__]))
