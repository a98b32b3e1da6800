#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The hypervisor that a daemon keeps started: taken by the next start, replaced, missed by nobody when it dies, left
behind by no end of the daemon."""

import os
import signal
import sys

os.environ["KELPIE_TEST_BACKEND"] = "qemu"
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from kit import World, check, equal, run_tests, wait_until  # noqa: E402


def settled(world, node, agents):
    """Runs so many agents; returns the pid of the spare beside them."""
    ready = node.log_text().count("spare.ready")
    for number in range(agents):
        node.cli("run", "-d", "--name", f"a{number}").ok("run")
    wait_until(lambda: node.log_text().count("spare.ready") > ready, "a spare is ready")
    equal(len(world.guests()), agents + 1, "hypervisors")
    taken = {node.agent(f"a{number}")["pid"] for number in range(agents)}
    return (set(world.guests()) - taken).pop()


def test_a_spare_is_taken_and_replaced():
    with World() as world:
        a = world.node("a", spare=True)
        spare = settled(world, a, 1)
        a.cli("run", "-d", "--name", "next").ok("run")
        equal(a.agent("next")["pid"], spare, "the process that was started before")
        equal(a.cli("exec", "next", "@echo", "hi").ok("exec").text(), "hi\n", "it runs")
        wait_until(lambda: len(world.guests()) == 3, "another spare")


def test_a_spare_serves_a_restore_and_an_arrival():
    with World() as world:
        a, b = world.node("a", spare=True), world.node("b", spare=True)
        settled(world, a, 1)
        a.cli("exec", "a0", "@fill", "2", "7").ok("fill")
        a.cli("snapshot", "create", "a0", "-n", "s").ok("snapshot")
        a.cli("restore", "s", "--name", "r").ok("restore")
        b.cli("run", "-d", "--name", "other").ok("run")
        wait_until(lambda: "spare.ready" in b.log_text(), "a spare on b")
        wait_until(lambda: len(world.guests()) == 5, "spares on both nodes")
        spares = set(world.guests()) - {a.agent(name)["pid"] for name in ("a0", "r")} - {b.agent("other")["pid"]}
        a.cli("teleport", "r", "b").ok("teleport")
        check(b.agent("r")["pid"] in spares, "it arrived in the spare")
        equal(b.cli("exec", "r", "@check").ok("check").text().split()[:2], ["pages=512", "bad=0"], "memory")


def is_not_missed(victim):
    with World() as world:
        a = world.node("a", spare=True)
        spare = settled(world, a, 1)
        with open(f"/proc/{spare}/stat") as stat:
            keeper = int(stat.read().rsplit(")", 1)[1].split()[1])
        os.kill(spare if victim == "hypervisor" else keeper, signal.SIGKILL)
        wait_until(lambda: spare not in world.guests(), "it is gone")
        a.cli("run", "-d", "--name", "next").ok(f"run after its {victim} died")
        equal(a.cli("exec", "next", "@echo", "hi").ok("exec").text(), "hi\n", "it runs")
        wait_until(lambda: len(world.guests()) == 3, "a spare again")


def test_a_dead_spare_is_not_missed():
    is_not_missed("hypervisor")


def test_a_spare_without_keeper_is_not_missed():
    is_not_missed("keeper")


def test_a_killed_daemon_leaves_no_spare():
    with World() as world:
        a = world.node("a", spare=True)
        spare = settled(world, a, 1)
        pid = a.agent("a0")["pid"]
        a.kill()
        a.start()
        equal(list(world.guests()), [pid], "the agent goes on, the spare is gone")
        equal(len(a.vm_folders()), 1, "folders of VMs")
        check(spare != pid, "they were two")


if __name__ == "__main__":
    sys.exit(run_tests(sys.modules[__name__]))
