#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What is refused, and how: the status and the code of each wrong use, the thing it names, the command that helps, and
that nothing was changed: agents, snapshots, nodes, files and processes are as before."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from kit import BUILD, Failed, Node, Result, Skip, World, check, equal, run_tests, store_seed, wait_until, world_environment

OBJECTS = ("manifests", "maps", "packs", "states", "blobs")


# ---- what must stay as it is


def files(world):
    """Path and size of every file; not the daemons' logs, nor the registry's own files, nor the operations' journal."""
    found = {}
    for folder, _, names in os.walk(world.root):
        for name in names:
            path = os.path.join(folder, name)
            if not name.endswith(".log") and "registry.db" not in name and "/operations/" not in path:
                with contextlib.suppress(OSError):
                    found[os.path.relpath(path, world.root)] = os.lstat(path).st_size
    return found


def picture(node, moved=False):
    """A move that was begun and taken back leaves a higher epoch: that is how it is taken back."""
    agents = node.cli("ps", "-a", "--json").ok("ps").json()["agents"]
    return {"agents": [{key: value for key, value in row.items() if not moved or key != "epoch"} for row in agents],
            "snapshots": node.cli("snapshot", "ls", "--json").json() if os.path.isdir(node.world.store) else None,
            "nodes": node.cli("node", "ls", "--json").ok("node ls").json(),
            "files": files(node.world),
            "processes": sorted(node.world.processes()),
            "vms": [one.vm_folders() for one in node.world.nodes]}


def unchanged(before, node, what, moved=False):
    """A process that just ends may still be seen: looked at until all is as before."""
    end = time.monotonic() + 10
    while (now := picture(node, moved)) != before:
        if time.monotonic() > end:
            for key, value in before.items():
                equal(now[key], value, f"{key} after {what}")
        time.sleep(0.05)


def shown(result, status, code, says, remedy, what):
    """For people: `kelpie: ` and what, then `Try: ` and a command; nothing on standard output."""
    lines = result.err.strip().splitlines()
    equal((result.status, result.out), (status, b""), f"{what}\n{result.err}")
    check(lines and lines[0].startswith("kelpie: "), f"{what}: {result.err!r}")
    check(says in result.err, f"{what} says {says!r}: {result.err!r}")
    if remedy is not None:
        equal(lines[-1], f"Try: {remedy}", what)
    print("# " + " ".join(what) + f" -> {status} [{code}] " + " | ".join(lines), flush=True)


def machine_read(result, status, code, says, what):
    error = json.loads(result.err.strip().splitlines()[-1])
    equal((result.status, result.out), (status, b""), f"{what} as JSON")
    equal((error["type"], error["code"], error["exit"]), ("error", code, status), f"{what}: {error}")
    check(says in " ".join([error["message"], *error["reasons"]]), f"{what} says {says!r}: {error}")


def refused(node, words, status, code, says, remedy=None, moved=False):
    before = picture(node, moved)
    shown(node.cli(*words), status, code, says, remedy, words)
    unchanged(before, node, words, moved)
    machine_read(node.cli("--json", *words), status, code, says, words)
    unchanged(before, node, words, moved)


# ---- names, sizes, states


def test_arguments():
    with World() as world:
        a = world.node("a")
        for words, says in (
                (["create", "--name", "Bad_Name"], "Bad_Name"), (["create", "--name", "x" * 64], "x" * 63),
                (["create", "Bad_Image"], "Bad_Image"), (["create", "--memory", "5"], "5"),
                (["create", "--memory", "64M"], "128M"), (["create", "--memory", "1X"], "1X"),
                (["create", "--memory", "-1"], "-1"), (["create", "--memory", "99999999999999999999G"], "--memory"),
                (["create", "--memory", "999999G"], "16384"), (["create", "--memory", "200000001"], "200000001"),
                (["create", "--cpus", "0"], "--cpus"), (["create", "--cpus", "65"], "--cpus"),
                (["create", "--arch", "mips"], "mips"), (["create", "-e", "NOVALUE"], "KEY=VALUE"),
                (["create", "--bogus"], "--bogus"), (["frobnicate"], "frobnicate"), (["prune"], "reserved"),
                (["inspect"], "inspect"), (["teleport", "x"], "teleport"), (["ps", "extra"], "extra"),
                (["wait", "x", "--timeout", "5"], "5"), (["fork", "x", "-c", "0"], "--count"),
                (["exec", "x"], "exec"), (["exec", "--timeout", "soon", "x", "@echo"], "soon"),
                (["run", "-d", "--memory", "1K"], "1K")):
            refused(a, words, 2, "invalid", says)


def test_nobody():
    with World() as world:
        a = world.node("a")
        a.cli("run", "-d", "--name", "x").ok("run")
        nobody = "there is no agent 'nobody'"
        for words in (["inspect", "nobody"], ["status", "nobody"], ["start", "nobody"], ["stop", "nobody"],
                      ["kill", "nobody"], ["rm", "nobody"], ["pause", "nobody"], ["resume", "nobody"],
                      ["suspend", "nobody"], ["wait", "nobody"], ["logs", "nobody"], ["cp", "nobody:/x", "."],
                      ["snapshot", "create", "nobody"], ["teleport", "nobody", "a"]):
            refused(a, words, 10, "not_found", nobody, "kelpie ps -a")
        refused(a, ["exec", "nobody", "@echo"], 125, "not_found", nobody, "kelpie ps -a")
        refused(a, ["restore", "nobody"], 10, "not_found", "no snapshot 'nobody'", "kelpie snapshot ls")
        refused(a, ["fork", "nobody"], 10, "not_found", "nobody", "kelpie snapshot ls")
        refused(a, ["snapshot", "rm", "nobody"], 10, "not_found", "nobody", "kelpie snapshot ls")
        refused(a, ["image", "inspect", "nobody"], 10, "not_found", "nobody", "kelpie image build nobody")
        refused(a, ["node", "inspect", "nobody"], 10, "not_found", "there is no node 'nobody'", "kelpie node ls")
        refused(a, ["teleport", "x", "nobody"], 10, "not_found", "there is no node 'nobody'", "kelpie node ls")
        refused(a, ["ops", "show", "0" * 32], 10, "not_found", "0" * 32)
        before = picture(a)
        equal(a.cli("rm", "-f", "nobody").status, 0, "rm -f of nobody")
        unchanged(before, a, "rm -f of nobody")


def test_names_taken():
    with World() as world:
        a = world.node("a")
        a.cli("run", "-d", "--name", "x").ok("run")
        a.cli("snapshot", "create", "x", "-n", "first").ok("snapshot")
        taken = "an agent 'x' already"
        refused(a, ["create", "--name", "x"], 11, "name_taken", taken, "kelpie inspect x")
        refused(a, ["run", "-d", "--name", "x"], 11, "name_taken", taken, "kelpie inspect x")
        refused(a, ["run", "--name", "x", "base", "@echo"], 125, "name_taken", taken, "kelpie inspect x")
        refused(a, ["restore", "first", "--name", "x"], 11, "name_taken", "'x' already")
        refused(a, ["restore", "first"], 11, "name_taken", "'x' already")
        refused(a, ["fork", "first", "--name", "x"], 11, "name_taken", "'x' already")
        refused(a, ["snapshot", "create", "x", "-n", "first"], 11, "name_taken", "'first' already")


def test_wrong_states():
    with World() as world:
        a = world.node("a")
        a.cli("run", "-d", "--name", "x").ok("run")
        a.cli("create", "--name", "c").ok("create")
        refused(a, ["start", "x"], 11, "wrong_state", "running")
        refused(a, ["resume", "x"], 11, "wrong_state", "running")
        refused(a, ["rm", "x"], 11, "wrong_state", "running", "kelpie rm -f x")
        refused(a, ["teleport", "x", "a"], 11, "wrong_state", "on node 'a' already")
        refused(a, ["teleport", "c", "a"], 11, "wrong_state", "created")
        for verb in ("pause", "resume", "suspend", "stop", "kill"):
            refused(a, [verb, "c"], 11, "wrong_state", "created")
        refused(a, ["exec", "c", "@echo"], 125, "wrong_state", "created", "kelpie start c")
        refused(a, ["create", "--backend", "qemu"], 12, "unsupported", "does not run guests with qemu", "kelpie doctor")
        refused(a, ["run", "-d", "--backend", "qemu"], 12, "unsupported", "does not run guests with qemu")


# ---- daemons


def daemon(world, *words, **environment):
    command = [os.path.join(BUILD, "kelpied"), "--backend", "mock", "--store", world.store, "--registry", world.registry,
               *words]
    return Result(subprocess.run(command, env={**world_environment(), **environment}, stdin=subprocess.DEVNULL,
                                 capture_output=True, timeout=60))


def daemon_refused(node, words, status, says, remedy=None, **environment):
    before = picture(node)
    listing = sorted(os.listdir(node.world.root))
    result = daemon(node.world, *words, **environment)
    equal(result.status, status, f"kelpied {words}\n{result.err}")
    said = [line for line in result.err.splitlines() if "level=" not in line]
    check(said and said[0].startswith("kelpied: ") and says in result.err, f"kelpied {words}: {result.err}")
    if remedy is not None:
        equal(said[-1], f"Try: {remedy}", f"kelpied {words}")
    print("# kelpied " + " ".join(words).replace(node.world.root, "W") + f" -> {status} "
          + " | ".join(said).replace(node.world.root, "W"), flush=True)
    unchanged(before, node, words)
    equal(sorted(os.listdir(node.world.root)), listing, f"what kelpied {words} left")


def test_daemons_in_each_others_way():
    with World() as world:
        a = world.node("a")
        a.cli("run", "-d", "--name", "x").ok("run")
        other = os.path.join(world.root, "other")
        another = "kelpied --name ANOTHER"
        daemon_refused(a, ["--state", other, "--name", "b", "--listen", "unix:" + a.socket], 11, "is in use")
        daemon_refused(a, ["--state", a.state, "--name", "b", "--listen", f"unix:{other}.sock"], 11,
                       "is in use by another kelpied")
        daemon_refused(a, ["--state", other, "--name", "a"], 11, "there is a node 'a'", another)
        os.kill(a.process.pid, signal.SIGSTOP)  # one that does not answer may live
        try:
            result = daemon(world, "--state", other, "--name", "a")
        finally:
            os.kill(a.process.pid, signal.SIGCONT)
        equal((result.status, os.path.exists(other)), (11, False), result.err)
        equal(a.cli("exec", "x", "@echo", "here").text(), "here\n", "the agent goes on")
        a.kill()  # its socket stays, and is taken over
        check(os.path.exists(a.socket), "a stale socket")
        a.start()
        equal(a.state_of("x"), "running", "adopted")


def test_daemons_wrong_use():
    with World() as world:
        a = world.node("a")
        other = ["--state", os.path.join(world.root, "other"), "--name", "b"]
        for words, says in ((["--bogus", "1"], "--bogus"), (["--bogus"], "--bogus"), (["word"], "word"),
                            (["--lease", "5"], "5"), (["--lease", "1ms"], "1ms"), (["--name", "Bad_Name"], "Bad_Name"),
                            (["--backend", "nosuch"], "nosuch"), (["--listen", "tcp:1"], "tcp:1"),
                            (["--mock-arch", "mips"], "mips"), (["--config", "/nonexistent"], "/nonexistent")):
            daemon_refused(a, [*other, *words], 2, says, "kelpied --help")
        daemon_refused(a, other, 2, "KELPIE_BOGUS", "kelpied --help", KELPIE_BOGUS="1")
        missing = os.path.join(world.root, "missing", "r.db")
        daemon_refused(a, [*other, "--registry", missing], 14, "cannot open registry")
        daemon_refused(a, [*other, "--store", "/proc/nothing"], 14, "cannot open store")


def test_no_daemon():
    """A host that was named and does not answer: nothing is started for it."""
    with tempfile.TemporaryDirectory(prefix="kelpie-wrong-") as folder:
        for host, status, code in ((f"unix:{folder}/none.sock", 14, "unreachable"), ("unix:", 2, "invalid"),
                                   ("ftp://x", 2, "invalid"), ("https://127.0.0.1:1", 12, "unsupported")):
            for words in (["ps"], ["run", "-d"]):
                results = [Result(subprocess.run([os.path.join(BUILD, "kelpie"), *flags, *words], capture_output=True,
                                                 env={**world_environment(), "KELPIE_HOST": host}, timeout=60,
                                                 stdin=subprocess.DEVNULL)) for flags in ([], ["--json"])]
                shown(results[0], status, code, host, None, [*words, host.replace(folder, "W")])
                machine_read(results[1], status, code, host, words)
        equal(os.listdir(folder), [], "what was made")


# ---- the store's folder, and its disk


def test_store_gone():
    with World() as world:
        a, b = world.node("a"), world.node("b")
        a.cli("run", "-d", "--name", "x").ok("run")
        a.cli("exec", "x", "@fill", "2", "7").ok("fill")
        a.cli("snapshot", "create", "x", "-n", "first").ok("snapshot")
        a.cli("run", "-d", "--name", "s").ok("run")
        a.cli("suspend", "s").ok("suspend")
        away = world.store + ".away"
        shutil.copytree(world.store, away)
        shutil.rmtree(world.store)
        for words in (["snapshot", "create", "x", "-n", "second"], ["suspend", "x"], ["fork", "x"],
                      ["teleport", "x", "b"], ["run", "-d", "--name", "new"], ["restore", "first", "--name", "y"],
                      ["snapshot", "ls"], ["resume", "s"]):
            refused(a, words, 14, "unreachable", world.store, moved=words[0] == "teleport")
        equal(a.cli("exec", "x", "@check").text(), "pages=512 bad=0\n", "the agent goes on")
        b.stop()
        a.stop()  # started again, it does not make a new store under agents that have theirs elsewhere
        result = daemon(world, "--state", a.state, "--name", "a", "--listen", "unix:" + a.socket)
        equal(result.status, 14, result.err)
        check("is its disk mounted?" in result.err and not os.path.exists(world.store), result.err)
        os.rename(away, world.store)
        a.start()
        equal(a.cli("exec", "x", "@check").text(), "pages=512 bad=0\n", "memory")
        a.cli("resume", "s").ok("resume")
        a.cli("snapshot", "create", "x", "-n", "second").ok("snapshot")


class SmallDisk:
    """A file system of a few MiB at `folder`, seen by one daemon and by us through it."""

    def __init__(self, folder, mebibytes):
        os.mkdir(folder)
        script = f'mount -t tmpfs -o size={mebibytes}m none "$0" && exec "$@"'
        self.folder, self.wrapper = folder, ["unshare", "-Urm", "sh", "-c", script, folder]
        probe = subprocess.run([*self.wrapper, "true"], capture_output=True)
        if probe.returncode != 0:
            raise Skip("no file system can be mounted here: " + probe.stderr.decode().strip())

    def seen_by(self, node):
        self.inside = f"/proc/{node.process.pid}/root{self.folder}"
        return self

    def fill(self):
        with open(os.path.join(self.inside, "filler"), "ab", buffering=0) as file:
            for block in (1 << 20, 4096, 1):
                with contextlib.suppress(OSError):
                    while file.write(b"\1" * block):
                        pass

    def empty(self):
        os.unlink(os.path.join(self.inside, "filler"))

    def files(self):
        return {os.path.relpath(os.path.join(at, name), self.inside): os.lstat(os.path.join(at, name)).st_size
                for at, _, names in os.walk(self.inside) for name in names
                if name != "filler" and "registry.db" not in name and "/operations" not in at}


def full(node, disk, words):
    """Until space is there again: 15, and all as before."""
    moved = words[0] == "teleport"
    before, listing = picture(node, moved), disk.files()
    disk.fill()
    shown(node.cli(*words), 15, "no_space", "o space left" if "registry" not in node.cli(*words).err else "full", None,
          words)
    machine_read(node.cli("--json", *words), 15, "no_space", "", words)
    unchanged(before, node, words, moved)
    equal(disk.files(), listing, f"files after {words}")
    disk.empty()


def filled_agent(node, name="x"):
    node.cli("run", "-d", "--name", name).ok("run")
    node.cli("exec", name, "@fill", "2", "7").ok("fill")


def test_full_disk_of_the_store():
    with World() as world:
        disk = SmallDisk(os.path.join(world.root, "small"), 16)
        world.store = os.path.join(disk.folder, "store")
        a = world.node("a", wrapper=disk.wrapper)
        disk.seen_by(a)
        filled_agent(a)
        for words in (["snapshot", "create", "x", "-n", "first"], ["suspend", "x"], ["fork", "x"]):
            full(a, disk, words)
            equal(a.cli("exec", "x", "@check").text(), "pages=512 bad=0\n", "the agent goes on")
        a.cli("snapshot", "create", "x", "-n", "first").ok("snapshot, with space again")
        a.cli("suspend", "x").ok("suspend")
        a.cli("resume", "x").ok("resume")
        equal(a.cli("exec", "x", "@check").text(), "pages=512 bad=0\n", "memory")


def test_full_disk_in_a_move():
    """Both daemons on the same small disk: the second is started inside the first one's mount."""
    with World() as world:
        disk = SmallDisk(os.path.join(world.root, "small"), 16)
        world.store = os.path.join(disk.folder, "store")
        a = world.node("a", wrapper=disk.wrapper)
        disk.seen_by(a)
        b = world.node("b", wrapper=["nsenter", "-t", str(a.process.pid), "-U", "-m", "--preserve-credentials"])
        filled_agent(a)
        full(a, disk, ["teleport", "x", "b"])
        equal((a.agent("x")["node"], a.state_of("x")), ("a", "running"), "where it is")
        equal(a.cli("exec", "x", "@check").text(), "pages=512 bad=0\n", "memory")
        a.cli("teleport", "x", "b").ok("teleport, with space again")
        equal(b.cli("exec", "x", "@check").text(), "pages=512 bad=0\n", "memory")


def test_full_disk_of_everything():
    """Registry, state and store: what was recorded stays as it was; agents go on when there is space again."""
    with World(lease="3s") as world:
        disk = SmallDisk(os.path.join(world.root, "small"), 16)
        world.store, world.registry = (os.path.join(disk.folder, name) for name in ("store", "registry.db"))
        a = Node(world, "a", "mock")
        log, a.state = a.state + ".log", os.path.join(disk.folder, "a")
        os.mkdir(os.path.join(world.root, "outside"))
        a.log_text = lambda: open(log, encoding="utf-8", errors="replace").read()[-6000:]
        world.nodes.append(a)
        started = subprocess.Popen(
            [*disk.wrapper, os.path.join(BUILD, "kelpied"), "--state", a.state, "--name", "a", "--listen",
             "unix:" + a.socket, "--backend", "mock", "--store", world.store, "--registry", world.registry, "--lease",
             "3s"], env=world_environment(), stdin=subprocess.DEVNULL, stdout=open(log, "ab"), stderr=open(log, "ab"),
            start_new_session=True)
        a.process = started
        wait_until(lambda: a.cli("version").status == 0 or started.poll() is not None, "the daemon answers")
        disk.seen_by(a)
        filled_agent(a)
        a.cli("snapshot", "create", "x", "-n", "first").ok("snapshot")
        disk.fill()
        time.sleep(1)
        disk.fill()  # what the registry had kept as room is used by now
        agents = a.cli("ps", "-a", "--json").json()
        for words in (["create", "--name", "q"], ["run", "-d", "--name", "r"], ["restore", "first", "--name", "y"],
                      ["suspend", "x"], ["stop", "x"], ["kill", "x"], ["rm", "-f", "x"], ["fork", "x"],
                      ["cp", os.path.join(BUILD, "kelpie"), "x:/tmp/k"], ["snapshot", "create", "x"]):
            for _ in range(40):  # the registry may have a page left for the first of them
                disk.fill()
                result = a.cli(*words)
                if result.status == 15:
                    break
                name = words[-1] if words[0] in ("create", "run", "restore") else None
                check(name is not None and result.status == 0, f"{words}: {result.status} {result.err}")
                a.cli("rm", "-f", name)
            shown(result, 15, "no_space", "", None, words)
        time.sleep(4)  # longer than the lease, which nobody can renew: the agent stands still
        left = [row for row in a.cli("ps", "-a", "--json").json()["agents"] if row["name"] == "x"]
        equal(left, [row for row in agents["agents"] if row["name"] == "x"], "the agent's record")
        disk.empty()
        wait_until(lambda: a.cli("ps", "-a", "-q").text().split() == ["x"], "nothing else is left")
        wait_until(lambda: a.cli("exec", "x", "@check").text() == "pages=512 bad=0\n", "the agent goes on")
        a.cli("suspend", "x").ok("suspend, with space again")
        a.cli("resume", "x").ok("resume")
        equal(a.cli("exec", "x", "@check").text(), "pages=512 bad=0\n", "memory")


# ---- another architecture


def test_other_architecture():
    host = os.uname().machine
    other = {"x86_64": "aarch64", "aarch64": "x86_64"}[host]
    with World() as world:
        a, b = world.node("a"), world.node("b", arguments=("--mock-arch", other))
        filled_agent(a)
        a.cli("snapshot", "create", "x", "-n", "first").ok("snapshot")
        says, way = f"its guest is {host}, guests here are {other}", "kelpie teleport x b --checkpoint"
        refused(a, ["create", "--arch", other], 12, "unsupported", f"does not run {other} guests", "kelpie doctor")
        for node, words in ((a, ["teleport", "x", "b", "--check"]), (a, ["teleport", "x", "b"]),
                            (b, ["teleport", "x", "b"]), (b, ["restore", "first", "--name", "y"]), (b, ["fork", "first"])):
            refused(node, words, 12, "incompatible", says, way)
        for row in a.cli("ops", "--json").json()["operations"]:
            equal([(phase["step"], phase["bytes"]) for phase in row["phases"]], [("preflight", 0)], "what was done")
        equal(a.cli("exec", "x", "@check").text(), "pages=512 bad=0\n", "memory")
        a.cli(*way.split()[1:]).ok("the way that was named")
        agent = b.agent("x")
        equal((agent["node"], agent["arch"], agent["state"]), ("b", other, "running"), "where it is")


# ---- one byte of a stored object


def objects(world):
    return {os.path.join(at, name) for kind in OBJECTS for at, _, names in os.walk(os.path.join(world.store, kind))
            for name in names}


def kind_of(path):
    return path.split(os.sep)[-3]


@contextlib.contextmanager
def flipped(path, at):
    def flip():
        mode = os.stat(path).st_mode
        os.chmod(path, 0o600)
        with open(path, "r+b") as file:
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ 0x10]))
        os.chmod(path, mode)
    flip()
    try:
        yield
    finally:
        flip()


def places(path, few=False):
    size = os.path.getsize(path)
    return sorted({size // 2} if few else {0, 20, 55, 63, size // 2, size - 1})


def names_it(result, path, at, what):
    digest = os.path.basename(path)
    equal(result.status, 16, f"{what} with byte {at} of {kind_of(path)} {digest} flipped\n{result.text()}{result.err}")
    check(digest in result.err, f"{what} names {digest}: {result.err}")


def each_flip(world, node, agent, state, words, paths=None, few=False):
    """Every object there is, in a daemon that has read none yet: refused, named, and the agent is where it was."""
    before, shown_kinds = None, set()
    for path in sorted(paths or objects(world)):
        for at in places(path, few):
            node.stop()
            with flipped(path, at):
                node.start()
                before = picture(node)
                result = node.cli(*words)
                names_it(result, path, at, words)
                equal((node.state_of(agent), node.agent(agent)["node"]), (state, node.name), "the agent")
                now = picture(node)
                for row in now["agents"] + before["agents"]:
                    row.pop("reason")  # may say why it was not started
                for key in ("agents", "snapshots", "files", "vms"):
                    equal(now[key], before[key], f"{key} after {words}")
            if kind_of(path) not in shown_kinds:
                shown_kinds.add(kind_of(path))
                print(f"# byte {at} of {kind_of(path)}: " + result.err.strip().splitlines()[0], flush=True)
    node.stop()
    node.start()
    node.cli(*words).ok("with all bytes as they were")
    return shown_kinds


def test_flipped_bytes_restore():
    with World() as world:
        a = world.node("a")
        filled_agent(a)
        a.cli("snapshot", "create", "x", "-n", "first").ok("snapshot")
        kinds = each_flip(world, a, "x", "running", ["restore", "first", "--name", "y"])
        equal(kinds, {"manifests", "maps", "packs", "states"}, "kinds of objects")
        for name in ("x", "y"):
            equal(a.cli("exec", name, "@check").text(), "pages=512 bad=0\n", "memory")


def test_flipped_bytes_resume():
    with World() as world:
        a = world.node("a")
        filled_agent(a)
        a.cli("suspend", "x").ok("suspend")
        kinds = each_flip(world, a, "x", "suspended", ["resume", "x"])
        equal(kinds, {"manifests", "maps", "packs", "states"}, "kinds of objects")
        equal(a.cli("exec", "x", "@check").text(), "pages=512 bad=0\n", "memory")


def stands_still(process):
    with open(f"/proc/{process.pid}/stat", encoding="utf-8") as file:
        return file.read().rsplit(")", 1)[1].split()[0] == "T"


def flip_in_move(world, a, b, kind):
    """The source is held when its final snapshot is in the store; then a byte of its newest object goes wrong."""
    before = objects(world)
    moving = a.spawn("teleport", "x", "b")
    wait_until(lambda: stands_still(a.process), "the source stands at its point")
    made = [path for path in objects(world) - before if kind_of(path) == kind]
    path = max(made, key=lambda one: os.stat(one).st_mtime_ns)
    with flipped(path, os.path.getsize(path) // 2):
        os.kill(a.process.pid, signal.SIGCONT)
        _, err = moving.communicate(timeout=60)
    return path, moving.returncode, err.decode()


def refused_in_move(world, a, b, kind):
    """False: that object had been read before, or nothing had changed since."""
    path, status, err = flip_in_move(world, a, b, kind)
    check(a.cli("exec", "x", "@check").ok("check").text().endswith("bad=0\n"), "memory")
    if status == 0:
        b.cli("teleport", "x", "a").ok("back")
        return False
    equal(status, 16, f"{kind}: {err}")
    check(os.path.basename(path) in err, f"{path} is named: {err}")
    equal((a.agent("x")["node"], a.state_of("x")), ("a", "running"), "where it is")
    wait_until(lambda: b.vm_folders() == [], "the destination kept nothing")
    print("# " + err.strip().splitlines()[0], flush=True)
    return True


def test_flipped_bytes_in_a_move():
    with World(lease="10s") as world:
        a, b = world.node("a"), world.node("b")
        filled_agent(a)
        for kind in ("manifests", "maps", "packs"):
            for _ in range(8):
                a.stop()  # a point acts once in a process
                a.start(point="teleport.final:stop")
                if refused_in_move(world, a, b, kind):
                    break
            else:
                raise Failed(f"a damaged one of {kind} was never refused")


# ---- real guests


def test_qemu_flipped_bytes():
    with World(backend="qemu", lease="30s") as world:
        a = world.node("a")
        a.cli("run", "-d", "--name", "x").ok("run")
        a.cli("exec", "x", "@fill", "2", "7").ok("fill")
        described = a.cli("image", "inspect", "base").ok("image inspect").json()["images"][0]["digest"]
        # A snapshot lies over its template's memory; the image's description and the template's device state are
        # not read for it, but for a new agent.
        others = {path for path in objects(world) if os.path.basename(path) == described or kind_of(path) == "states"}
        a.cli("suspend", "x").ok("suspend")
        kinds = each_flip(world, a, "x", "suspended", ["resume", "x"], objects(world) - others, few=True)
        equal(kinds, set(OBJECTS), "kinds of objects")
        equal(a.cli("exec", "x", "@check").text(), "pages=512 bad=0\n", "memory")
        each_flip(world, a, "x", "running", ["run", "-d", "--name", "new"], others)


def test_qemu_names_and_architecture():
    with World(backend="qemu", lease="30s") as world:
        a = world.node("a")
        other = {"x86_64": "aarch64", "aarch64": "x86_64"}[os.uname().machine]
        b = Node(world, "b", "mock")
        world.nodes.append(b)
        b.start(arguments=("--mock-arch", other))
        a.cli("run", "-d", "--name", "x").ok("run")
        image = "no image 'nosuch' for " + os.uname().machine
        refused(a, ["create", "nosuch"], 10, "not_found", image, "kelpie image build nosuch")
        refused(a, ["run", "-d", "nosuch"], 10, "not_found", image, "kelpie image build nosuch")
        refused(a, ["create", "--arch", other], 12, "unsupported", f"does not run {other} guests", "kelpie doctor")
        refused(a, ["teleport", "x", "b"], 12, "incompatible", "qemu", "kelpie teleport x b --checkpoint")
        equal(a.cli("exec", "x", "@echo", "on").text(), "on\n", "the agent goes on")


if __name__ == "__main__":
    sys.exit(run_tests(sys.modules[__name__]))
