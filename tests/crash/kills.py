#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""kill -9 of the daemon, the keeper, the hypervisor and the command, in the middle of snapshots and teleports.

After every kill and restart: the agent runs in exactly one place, or is parked, or crashed with a reason and starts
again from its last snapshot; its memory is right; nothing is left behind. Backend: $KELPIE_TEST_BACKEND (mock)."""

import os
import re
import signal
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "e2e"))
from kit import Skip, World, check, equal, run_tests, wait_until  # noqa: E402

BACKEND = os.environ.get("KELPIE_TEST_BACKEND", "mock")

# Where a source can die during a teleport, and a destination; where a daemon can die during a snapshot.
SOURCE_POINTS = ["teleport.before-intent", "teleport.intent", "snapshot.pack-written", "snapshot.map-written",
                 "snapshot.before-manifest", "snapshot.after-manifest", "teleport.noted", "teleport.quiet",
                 "teleport.captured", "teleport.final", "teleport.before-accept", "teleport.accepted",
                 "teleport.before-release"]
DESTINATION_POINTS = ["teleport.before-claim", "teleport.claimed", "bringup.restored", "bringup.unique",
                      "bringup.before-running", "bringup.running"]
SNAPSHOT_POINTS = ["snapshot.pack-written", "snapshot.map-written", "snapshot.before-manifest",
                   "snapshot.after-manifest", "snapshot.named"]
SUSPEND_POINTS = ["suspend.before-commit", "suspend.committed"]


def world():
    if BACKEND not in ("mock", "qemu"):
        raise Skip(f"no backend {BACKEND}")
    return World(backend=BACKEND, lease="3s")


def prepared(node):
    node.cli("run", "-d", "--name", "k").ok("run")
    node.cli("exec", "k", "@fill", "2", "9").ok("fill")
    node.cli("snapshot", "create", "k", "-n", "safe").ok("first snapshot")


def settled(nodes):
    """The agent's record as soon as it is in a state that lasts."""

    def look():
        for node in nodes:
            if node.process.poll() is not None:
                continue
            agent = node.agent("k")
            if agent and agent["state"] in ("running", "parked", "crashed", "suspended", "stopped"):
                return agent
        return None

    agent = wait_until(look, "the agent is in a state that lasts", 40)
    time.sleep(0.3)  # whatever was about to change has changed
    return look() or agent


def verify(w, nodes):
    """The promise of the head of this file."""
    agent = settled(nodes)
    owner = next((node for node in nodes if node.name == agent["node"]), None)
    check(owner is not None, f"owner is {agent['node']}")
    if agent["state"] == "crashed":
        check(agent["reason"], "crashed with a reason")
    if agent["state"] in ("parked", "crashed", "suspended", "stopped"):
        owner.cli("start", "k").ok(f"start of the {agent['state']} agent")
    wait_until(lambda: owner.cli("exec", "k", "@echo", "up").status == 0, "it answers", 30)
    text = owner.cli("exec", "k", "@check").ok("check").text()
    if agent["state"] != "stopped":
        equal(text, "pages=512 bad=0\n", "memory")
    first = int(owner.cli("exec", "k", "@count").ok("count").text())
    wait_until(lambda: int(owner.cli("exec", "k", "@count").text() or 0) > first, "the workload runs")
    wait_until(lambda: len(w.guests()) == 1, "exactly one guest", 20)
    wait_until(lambda: sum(len(node.vm_folders()) for node in nodes) == 1, "exactly one folder of a VM", 5)
    for node in nodes:
        notes = os.path.join(node.state, "notes")
        equal(os.listdir(notes) if os.path.isdir(notes) else [], [], f"hand-off notes of {node.name}")


def killed_at(point, action, on):
    """Daemon `on` dies at the point while `action` is asked of a; then it is started again."""
    with world() as w:
        a, b = w.node("a"), w.node("b")
        prepared(a)
        victim = {"a": a, "b": b}[on]
        victim.stop()
        victim.start(point=point + ":kill")
        wait_until(lambda: a.cli("exec", "k", "@echo", "up").status == 0, "it runs before the kill")
        a.cli(*action, timeout=120)
        wait_until(lambda: victim.process.poll() is not None, f"{on} died at {point}", 10)
        equal(victim.process.returncode, -signal.SIGKILL, "killed")
        victim.start()
        verify(w, [a, b])


def point_test(point, action, on):
    def test():
        killed_at(point, action, on)

    return test


for _point in SOURCE_POINTS:
    globals()[f"test_teleport__source_dies_at_{re.sub('[^a-z]', '_', _point)}"] = point_test(
        _point, ["teleport", "k", "b"], "a")
for _point in DESTINATION_POINTS:
    globals()[f"test_teleport__destination_dies_at_{re.sub('[^a-z]', '_', _point)}"] = point_test(
        _point, ["teleport", "k", "b"], "b")
for _point in SNAPSHOT_POINTS:
    globals()[f"test_snapshot__daemon_dies_at_{re.sub('[^a-z]', '_', _point)}"] = point_test(
        _point, ["snapshot", "create", "k"], "a")
for _point in SUSPEND_POINTS:
    globals()[f"test_suspend__daemon_dies_at_{re.sub('[^a-z]', '_', _point)}"] = point_test(
        _point, ["suspend", "k"], "a")


def test_keeper_dies():
    with world() as w:
        a, b = w.node("a"), w.node("b")
        prepared(a)
        for pid in w.keepers():
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: a.state_of("k") == "crashed", "crashed")
        wait_until(lambda: not w.guests(), "the guest died with its keeper")
        verify(w, [a, b])


def test_keeper_that_does_not_answer_a_new_daemon():
    """As long as the VM may live the agent is not said to have crashed: it could be started beside it."""
    with world() as w:
        a, b = w.node("a"), w.node("b")
        prepared(a)
        stuck = w.keepers()
        a.kill()
        for pid in stuck:
            os.kill(pid, signal.SIGSTOP)
        a.start()
        equal(a.state_of("k"), "running", "state while its keeper stands still")
        for pid in stuck:
            os.kill(pid, signal.SIGCONT)
        wait_until(lambda: a.state_of("k") == "crashed", "crashed once its VM is gone", 60)
        verify(w, [a, b])


def test_hypervisor_dies():
    with world() as w:
        a, b = w.node("a"), w.node("b")
        prepared(a)
        os.kill(a.agent("k")["pid"], signal.SIGKILL)
        wait_until(lambda: a.state_of("k") == "crashed", "crashed")
        verify(w, [a, b])


def stopped_at(point, words, victims):
    """The daemon stands still at the point; then `victims` of the world are killed, and it goes on."""
    with world() as w:
        a, b = w.node("a"), w.node("b")
        prepared(a)
        a.stop()
        a.start(point=point + ":stop")
        wait_until(lambda: a.cli("exec", "k", "@echo", "up").status == 0, "it runs before")
        asked = a.spawn(*words)
        wait_until(lambda: open(f"/proc/{a.process.pid}/stat").read().rsplit(")", 1)[1].split()[0] == "T",
                   f"the daemon stands at {point}", 20)
        victims(w, asked)
        os.kill(a.process.pid, signal.SIGCONT)
        asked.wait(timeout=90)
        asked.stdout.close()
        asked.stderr.close()
        verify(w, [a, b])


def kill_command(w, asked):
    asked.kill()


def kill_keepers(w, asked):
    for pid in w.keepers():
        os.kill(pid, signal.SIGKILL)


def kill_guests(w, asked):
    for pid in w.guests():
        os.kill(pid, signal.SIGKILL)


for _name, _victims in (("command", kill_command), ("keeper", kill_keepers), ("hypervisor", kill_guests)):
    globals()[f"test_snapshot__{_name}_dies_in_the_middle"] = (
        lambda victims=_victims: stopped_at("snapshot.pack-written", ["snapshot", "create", "k"], victims))
    globals()[f"test_teleport__{_name}_dies_before_the_claim"] = (
        lambda victims=_victims: stopped_at("teleport.captured", ["teleport", "k", "b"], victims))


def test_stopped_daemon__guest_stands_still_by_its_lease():
    with world() as w:
        a = w.node("a")
        prepared(a)
        pid = a.agent("k")["pid"]
        os.kill(a.process.pid, signal.SIGSTOP)
        state = lambda: open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[0]
        began = time.monotonic()
        wait_until(lambda: state() == "T", "the guest stands still", 4)
        check(time.monotonic() - began <= 3 * 2 / 3 + 0.5, "by two thirds of the lease")
        os.kill(a.process.pid, signal.SIGCONT)
        wait_until(lambda: a.cli("exec", "k", "@echo", "up", timeout=20).status == 0, "it goes on", 20)


if __name__ == "__main__":
    sys.exit(run_tests(sys.modules[__name__]))
