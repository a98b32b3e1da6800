#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Agents on two Mock nodes: everything a user does, by the command."""

import http.client
import json
import os
import re
import socket
import sys
import threading

from kit import World, check, equal, run_tests, wait_until


def filled(node, name):
    """An agent with keyed memory and a counter."""
    node.cli("run", "-d", "--name", name).ok("run")
    node.cli("exec", name, "@fill", "2", "7").ok("fill")
    return node


def bad_pages(node, name):
    result = node.cli("exec", name, "@check").ok(f"check of {name}")
    return re.fullmatch(r"pages=(\d+) bad=(\d+)\n", result.text()).groups()


def count(node, name):
    return int(node.cli("exec", name, "@count").ok("count").text())


def test_run_exec_stop_start_rm():
    with World() as world:
        a = world.node("a")
        equal(a.cli("run", "-d", "--name", "web").ok("run").text(), "web\n", "run -d prints the name")
        equal(a.cli("exec", "web", "@echo", "hello", "world").ok("exec").text(), "hello world\n", "exec")
        equal(a.cli("exec", "web", "@exit", "7").status, 7, "status passes")
        equal(a.cli("exec", "web", "nosuch").status, 127, "no command")
        equal(a.cli("exec", "web", "@cat", input=b"\xff\x00bytes").out, b"\xff\x00bytes", "stdin and odd bytes")
        equal(a.cli("start", "web").status, 11, "start of a running one")
        a.cli("stop", "web").ok("stop")
        equal(a.state_of("web"), "stopped", "state")
        equal(a.cli("exec", "web", "@echo").status, 125, "exec of a stopped one")
        a.cli("start", "web").ok("start")
        a.cli("rm", "-f", "web").ok("rm")
        equal(a.cli("rm", "web").status, 10, "rm of nobody")
        equal(a.cli("rm", "-f", "web").status, 0, "rm -f of nobody")


def test_streams_timeout_signal():
    with World() as world:
        a = world.node("a")
        a.cli("run", "-d", "--name", "x").ok("run")
        result = a.cli("exec", "x", "@flood", "300000")
        equal(len(result.out), 300000, "bytes of stdout")
        result = a.cli("exec", "x", "@flood", "1000", "err")
        equal((len(result.out), len(result.err) >= 1000), (0, True), "streams apart")
        equal(a.cli("exec", "--timeout", "300ms", "x", "@sleep", "30").status, 124, "timeout")
        equal(a.cli("exec", "x", "@raise", "9").status, 137, "signal")
        one = a.cli("exec", "--json", "x", "@echo", "hi").ok("exec --json").json()
        equal((one["exit_code"], one["truncated"]), (0, False), "one-shot exec")


def test_pause_and_resume():
    with World() as world:
        a = filled(world.node("a"), "p")
        a.cli("pause", "p").ok("pause")
        equal(a.state_of("p"), "paused", "state")
        equal(a.cli("pause", "p").status, 11, "pause twice")
        a.cli("resume", "p").ok("resume")
        equal(a.cli("resume", "p").status, 11, "resume of a running one")
        before = count(a, "p")
        wait_until(lambda: count(a, "p") > before, "the counter grows")


def test_suspend_and_resume():
    with World() as world:
        a = filled(world.node("a"), "s")
        before = count(a, "s")
        a.cli("suspend", "s").ok("suspend")
        equal(a.state_of("s"), "suspended", "state")
        equal(a.vm_folders(), [], "nothing of it runs")
        a.cli("resume", "s").ok("resume")
        equal(bad_pages(a, "s"), ("512", "0"), "memory")
        check(count(a, "s") >= before, "the counter went on")


def test_snapshots_restore_fork():
    with World() as world:
        a = filled(world.node("a"), "f")
        a.cli("snapshot", "create", "f", "-n", "first").ok("snapshot")
        equal(a.cli("snapshot", "create", "f", "-n", "first").status, 11, "name taken")
        rows = a.cli("snapshot", "ls", "--json").ok("ls").json()["snapshots"]
        equal([row["name"] for row in rows], ["first"], "snapshots")
        a.cli("restore", "first", "--name", "again").ok("restore")
        equal(bad_pages(a, "again"), ("512", "0"), "memory of the restored")
        names = a.cli("fork", "f", "-c", "3", "-q").ok("fork").text().split()
        equal(len(names), 3, "forks")
        generations = {a.agent(name)["generation"] for name in names + ["f", "again"]}
        equal(len(generations), 5, "generations differ")
        for name in names:
            equal(bad_pages(a, name), ("512", "0"), "memory of a fork")
            equal(a.agent(name)["parent"], "f", "parent")
        equal(a.cli("restore", "nosuch").status, 10, "restore of nothing")


def test_teleport_there_and_back():
    with World() as world:
        a, b = filled(world.node("a"), "t"), world.node("b")
        before = count(a, "t")
        a.cli("teleport", "t", "b").ok("teleport")
        equal(b.agent("t")["node"], "b", "owner")
        equal(a.agent("t")["node"], "b", "owner as the source sees it")
        equal(bad_pages(b, "t"), ("512", "0"), "memory")
        check(count(b, "t") >= before, "the counter went on")
        equal(bad_pages(a, "t"), ("512", "0"), "any node answers for every agent")
        equal(a.vm_folders(), [], "the source kept nothing")
        b.cli("teleport", "t", "a").ok("back")
        equal(bad_pages(a, "t"), ("512", "0"), "memory after the way back")
        agent = a.agent("t")
        equal((agent["state"], agent["node"]), ("running", "a"), "state")
        check(agent["epoch"] >= 3, "the epoch grew twice")
        equal(a.cli("teleport", "t", "nosuch").status, 10, "no such node")
        operations = a.cli("ops", "--json").ok("ops").json()["operations"]
        check(any(row["kind"] == "teleport" and row["phases"] for row in operations), "the operation has phases")


def test_moves_while_everybody_asks():
    """Who asks a node for an agent that is just arriving must not make it a second one."""
    with World() as world:
        a, b = world.node("a"), world.node("b")
        a.cli("run", "-d", "--name", "m").ok("run")
        over = threading.Event()

        def ask(node):
            connection = http.client.HTTPConnection("kelpie", timeout=30)
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.connect(node.socket)
            while not over.is_set():
                connection.request("POST", "/v1/agents/m/exec", json.dumps({"argv": ["@count"]}),
                                   {"Content-Type": "application/json"})
                connection.getresponse().read()

        tasks = [threading.Thread(target=ask, args=(node,)) for node in (a, b) * 3]
        for task in tasks:
            task.start()
        try:
            for _ in range(4):
                a.cli("teleport", "m", "b").ok("there")
                b.cli("teleport", "m", "a").ok("back")
        finally:
            over.set()
            for task in tasks:
                task.join()
        equal(a.agent("m")["epoch"], 9, "epochs")
        equal((len(a.vm_folders()), len(b.vm_folders())), (1, 0), "folders of VMs")


def test_names_and_wrong_use():
    with World() as world:
        a = world.node("a")
        a.cli("create", "--name", "one").ok("create")
        equal(a.state_of("one"), "created", "state")
        equal(a.cli("create", "--name", "one").status, 11, "name taken")
        equal(a.cli("create", "--name", "Bad_Name").status, 2, "bad name")
        equal(a.cli("run", "-d", "--memory", "5").status, 2, "bad size")
        equal(a.cli("run", "-d", "--memory", "64M").status, 2, "too little memory")
        equal(a.cli("frobnicate").status, 2, "no such verb")
        equal(a.cli("exec", "nobody", "@echo").status, 125, "exec of nobody")
        result = a.cli("inspect", "nobody", "--json")
        equal(result.status, 10, "inspect of nobody")
        error = json.loads(result.err.strip().splitlines()[-1])
        equal((error["type"], error["code"], error["exit"]), ("error", "not_found", 10), "error line")


def test_crash_says_why():
    with World() as world:
        a = filled(world.node("a"), "c")
        a.cli("snapshot", "create", "c").ok("snapshot")
        a.cli("exec", "c", "@crash")
        wait_until(lambda: a.state_of("c") == "crashed", "crashed")
        check(a.agent("c")["reason"], "it has a reason")
        a.cli("start", "c").ok("start from its last snapshot")
        equal(bad_pages(a, "c"), ("512", "0"), "memory")


def test_daemon_restart_adopts():
    with World() as world:
        a = filled(world.node("a"), "k")
        pid, before = a.agent("k")["pid"], count(a, "k")
        a.stop()
        a.start()
        equal(a.agent("k")["pid"], pid, "the same process")
        equal(bad_pages(a, "k"), ("512", "0"), "memory")
        check(count(a, "k") > before, "it ran on meanwhile")


if __name__ == "__main__":
    sys.exit(run_tests(sys.modules[__name__]))
