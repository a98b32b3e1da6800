# SPDX-License-Identifier: Apache-2.0
"""The rows of the bench: each a function over a Bench."""

import concurrent.futures
import http.client
import json
import os
import socket
import threading
import time

import kit
import peer

MIB = 1 << 20


class Bench:
    def __init__(self, report, folder, rounds):
        self.report, self.folder, self.rounds, self.boot = report, folder, rounds, None
        self.kernel, self.initramfs = (os.path.join(folder, part) for part in ("kernel", "initramfs"))

    def world(self):
        return kit.World(backend="qemu", lease="30s")

    def qemu(self, name="peer", mib=512, **options):
        return peer.Qemu(self.folder, name, self.kernel, self.initramfs, mib, **options)


def took(call):
    began = time.monotonic()
    call()
    return (time.monotonic() - began) * 1000


def settle(node):
    """The spare that follows a start is made, and nothing else is at work."""
    time.sleep(0.8)
    return node


class Asker(http.client.HTTPConnection):
    """One connection to a daemon; asks the workload of an agent for its count."""

    def __init__(self, node):
        super().__init__("kelpie", timeout=60)
        self.path = node.socket

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)

    def ask(self, name):
        """True when the workload itself has answered."""
        self.request("POST", f"/v1/agents/{name}/exec", json.dumps({"argv": ["@count"]}),
                     {"Content-Type": "application/json"})
        answer = self.getresponse()
        body = answer.read()
        return answer.status == 200 and json.loads(body).get("exit_code") == 0

    def owner(self, name):
        self.request("GET", f"/v1/agents/{name}")
        answer = self.getresponse()
        return json.loads(answer.read())["agents"][0]["node"] if answer.status == 200 else None

    def ask_until(self, name, seconds=30):
        end = time.monotonic() + seconds
        while True:
            try:
                if self.ask(name):
                    return
            except (OSError, http.client.HTTPException):
                self.close()
            if time.monotonic() > end:
                raise TimeoutError(f"'{name}' does not answer")
            time.sleep(0.001)


def answer(node, name):
    node.cli("exec", name, "@count").ok("exec")


# ---- rows


def boot(bench):
    """boot: a plain QEMU, from its start to the answer of its agent"""
    bench.boot = bench.report.figure(
        "boot, 512 MiB", [peer.boot_ms(bench.folder, bench.kernel, bench.initramfs, 512) for _ in range(bench.rounds)])


def run(bench):
    """kelpie run from a template, to the first answer of exec"""
    with bench.world() as world:
        node = settle(world.node("a", spare=True))
        node.cli("run", "-d", "--name", "first").ok("run")
        times = []
        for number in range(bench.rounds):
            settle(node)
            name = f"r{number}"

            def once():
                node.cli("run", "-d", "--name", name).ok("run")
                answer(node, name)

            times.append(took(once))
            node.cli("rm", "-f", name).ok("rm")
    bench.report.target("of a boot", bench.report.figure("run and first answer", times) / bench.boot, 1 / 8)


def snapshot_of(node, memory, fill, name):
    node.cli("run", "-d", "--name", name, "--memory", memory).ok("run")
    if fill:
        node.cli("exec", name, "@fill", str(fill), "1").ok("fill")
    node.cli("snapshot", "create", name, "-n", f"{name}-s").ok("snapshot")
    node.cli("rm", "-f", name).ok("rm")
    return f"{name}-s"


def restores(bench, node, snapshot, rounds):
    times = []
    for number in range(rounds):
        settle(node)
        name = f"x{number}"

        def once():
            node.cli("restore", snapshot, "--name", name).ok("restore")
            answer(node, name)

        times.append(took(once))
        node.cli("rm", "-f", name).ok("rm")
    return times


def cache_drop(folder):
    for where, _, files in os.walk(folder):
        for file in files:
            with open(os.path.join(where, file), "rb") as opened:
                os.fsync(opened.fileno())
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def restore(bench):
    """restore of a 512 MiB guest with 16 MiB in use, to the first answer"""
    with bench.world() as world:
        node = world.node("a", spare=True)
        snapshot = snapshot_of(node, "512M", 16, "m")
        resident = bench.report.figure("template resident", restores(bench, node, snapshot, bench.rounds))
        cold = []
        for number in range(bench.rounds):
            node.stop()
            cache_drop(world.store)
            node.start(spare=True)
            cold += restores(bench, node, snapshot, 1)
        cold = bench.report.figure("nothing resident: a new daemon, page cache dropped", cold)
    bench.report.target("resident, of a boot", resident / bench.boot, 1 / 8)
    bench.report.target("resident, ms", resident, 125)
    bench.report.target("nothing resident, of a boot", cold / bench.boot, 1 / 3)


def restore_sizes(bench):
    """restore of a 2 GiB guest against one of 128 MiB with the same use"""
    medians = {}
    with bench.world() as world:
        node = world.node("a", spare=True)
        for memory in ("128M", "2G"):
            snapshot = snapshot_of(node, memory, 16, "m" + memory.lower())
            restores(bench, node, snapshot, 1)
            medians[memory] = bench.report.figure(memory, restores(bench, node, snapshot, bench.rounds))
    bench.report.target("2 GiB over 128 MiB", medians["2G"] / medians["128M"], 1.3)


def pause(bench):
    """pause of a snapshot with 33 MiB dirty, against QEMU stop, migrate to a file at unlimited bandwidth, cont"""
    ours, theirs = [], []
    with bench.world() as world, bench.qemu() as qemu:
        node = world.node("a")
        guest = qemu.guest()
        guest.hello()
        qemu.unlimited()
        node.cli("run", "-d", "--name", "m", "--memory", "512M").ok("run")
        for number in range(bench.rounds):
            guest.ask("@fill", "33", str(number))
            node.cli("exec", "m", "@fill", "33", str(number)).ok("fill")
            time.sleep(0.3)
            ours.append(node.cli("snapshot", "create", "m", "--json").ok("snapshot").json()["snapshots"][0]["pause_us"]
                        / 1000)
            time.sleep(0.3)

            def peer_pause():
                qemu.command("stop")
                qemu.save(os.path.join(bench.folder, "saved"))
                qemu.go_on()

            theirs.append(took(peer_pause))
        bad = node.cli("exec", "m", "@check").ok("check").text()
        print(f"   verifier: {bad.strip()}")
    ours = bench.report.figure("Kelpie: the agent stands still", ours)
    theirs = bench.report.figure("QEMU: stop, migrate, cont", theirs)
    bench.report.target("Kelpie over QEMU", ours / theirs, 0.5)


def idle_bytes(bench):
    """bytes written by a snapshot of an idle clone, 512 MiB"""
    sizes = []
    with bench.world() as world:
        node = world.node("a")
        for number in range(bench.rounds):
            node.cli("run", "-d", "--name", f"i{number}", "--memory", "512M").ok("run")
            row = node.cli("snapshot", "create", f"i{number}", "--json").ok("snapshot").json()["snapshots"][0]
            sizes.append(row["stored_bytes"] / MIB)
            share = row["stored_bytes"] / row["memory_bytes"]
    bench.report.figure("written", sizes, "MiB")
    bench.report.target("of guest memory", share, 0.02)


class Client(threading.Thread):
    """Asks one question after another, a millisecond apart, and notes when each was answered. `ask` returns False when
    there was no answer; Client.over ends it, behind the answer to the question under way."""

    def __init__(self, ask, times):
        super().__init__()
        self.ask, self.times, self.over = ask, times, threading.Event()

    def run(self):
        while not self.over.is_set():
            if self.ask():
                self.times.append(time.monotonic())
            time.sleep(0.001)

    def stop(self):
        self.over.set()
        self.join()


def widest_gap(times):
    times = sorted(times)
    return max(after - before for before, after in zip(times, times[1:])) * 1000


def kelpie_gap(source, destination):
    """Any node answers for every agent: the destination is asked from the moment the agent is its own."""
    times, here, there = [], Asker(source), Asker(destination)

    def ask_there():
        try:
            return there.owner("m") == destination.name and there.ask("m")
        except (OSError, http.client.HTTPException):
            there.close()
            return False

    def ask_here():
        try:
            return here.ask("m")
        except (OSError, http.client.HTTPException):
            here.close()
            return False

    clients = [Client(ask_here, times), Client(ask_there, times)]
    for client in clients:
        client.start()
    try:
        time.sleep(0.3)
        source.cli("teleport", "m", destination.name).ok("teleport")
        time.sleep(0.3)
    finally:
        for client in clients:
            client.stop()
    return widest_gap(times)


def peer_gap(bench, number):
    path, times = os.path.join(bench.folder, f"move{number}"), []
    with bench.qemu("source") as source, bench.qemu("target", incoming=f"unix:{path}") as target:
        guest, other = source.guest(), target.guest()
        guest.hello()
        source.unlimited()
        target.unlimited()
        client = Client(lambda: guest.ask("@count"), times)
        client.start()
        time.sleep(0.5)
        client.stop()
        source.command("stop")
        source.migrate(f"unix:{path}")
        if target.command("query-status")["status"] != "running":
            target.go_on()
        other.hello()
        other.ask("@count")
        return (time.monotonic() - times[-1]) * 1000


def teleport(bench):
    """blackout of a teleport, idle 512 MiB guest on loopback: last answer at the source to first at the destination"""
    ours, theirs = [], []
    with bench.world() as world:
        a, b = (world.node(name, spare=True) for name in "ab")
        for node in (a, b):
            node.cli("run", "-d", "--name", f"w{node.name}", "--memory", "512M").ok("run")
        a.cli("run", "-d", "--name", "m", "--memory", "512M").ok("run")
        Asker(a).ask_until("m")
        for _ in range(bench.rounds):
            settle(a)
            ours.append(kelpie_gap(a, b))
            a, b = b, a
    theirs = [peer_gap(bench, number) for number in range(bench.rounds)]
    ours = bench.report.figure("Kelpie: teleport", ours)
    theirs = bench.report.figure("QEMU: stop, migrate at unlimited bandwidth, cont", theirs)
    bench.report.target("of a boot", ours / bench.boot, 1 / 6)
    bench.report.target("Kelpie over QEMU", ours / theirs, 1.0)


# ---- memory

LAYERS = ("/memfd:kelpie-",)  # templates, dirty pages, device states: the guest's own memory, mapped to be read


def pss_kib(pid):
    """Of what is not the guest's memory or a layer of it."""
    total, counts = 0, True
    with open(f"/proc/{pid}/smaps", encoding="ascii", errors="replace") as file:
        for line in file:
            first = line.split(" ", 1)[0]
            if "-" in first and not first.endswith(":"):
                counts = not any(name in line for name in LAYERS)
            elif first == "Pss:" and counts:
                total += int(line.split()[1])
    return total


class Sampler(threading.Thread):
    """The peak of the sum over kelpied, keepers and pagers of a world."""

    def __init__(self, world):
        super().__init__()
        self.world, self.peak, self.over = world, 0, threading.Event()

    def run(self):
        pids, again = [], 0
        while not self.over.is_set():
            if time.monotonic() > again:
                pids = [pid for pid, words in self.world.processes().items()
                        if os.path.basename(words.split(" ")[0]) in ("kelpied", "kelpie-keeper", "kelpie-pager")]
                again = time.monotonic() + 0.2
            total = 0
            for pid in pids:
                try:
                    total += pss_kib(pid)
                except OSError:
                    pass
            self.peak = max(self.peak, total)
            time.sleep(0.005)

    def stop(self):
        self.over.set()
        self.join()
        return self.peak / 1024


def memory_peak(bench, memory, fill):
    with bench.world() as world:
        a, b = (world.node(name) for name in "ab")
        a.cli("run", "-d", "--name", "m", "--memory", memory).ok("run")
        if fill:
            a.cli("exec", "m", "@fill", str(fill), "7", timeout=600).ok("fill")
        sampler = Sampler(world)
        sampler.start()
        try:
            a.cli("snapshot", "create", "m", timeout=600).ok("snapshot")
            a.cli("teleport", "m", "b", timeout=600).ok("teleport")
        finally:
            peak = sampler.stop()
        print(f"   {memory}: {b.cli('exec', 'm', '@check', timeout=600).text().strip()}")
        return peak


def memory(bench):
    """peak memory of kelpied and keepers over a snapshot and a teleport: 2 GiB with 1.5 GiB in use against 128 MiB"""
    small = bench.report.figure("128 MiB", [memory_peak(bench, "128M", 0) for _ in range(3)], "MiB")
    large = bench.report.figure("2 GiB, 1.5 GiB incompressible", [memory_peak(bench, "2G", 1536)], "MiB")
    bench.report.target("large over small", large / small, 1.2)


# ---- forks


def forks(bench):
    """ten forks at once of a running agent with 8 MiB dirty: until the last has answered"""
    times = []
    with bench.world() as world:
        node = world.node("a", spare=True)
        node.cli("run", "-d", "--name", "m", "--memory", "512M").ok("run")
        node.cli("exec", "m", "@fill", "6", "3").ok("fill")
        for _ in range(bench.rounds):
            settle(node)

            def once():
                names = node.cli("fork", "m", "-c", "10", "-q").ok("fork").text().split()
                with concurrent.futures.ThreadPoolExecutor(10) as pool:
                    list(pool.map(lambda name: Asker(node).ask_until(name), names))
                return names

            began = time.monotonic()
            names = once()
            times.append((time.monotonic() - began) * 1000)
            for name in names:
                node.cli("rm", "-f", name).ok("rm")
    bench.report.target("of a boot", bench.report.figure("fork -c 10 and an answer of each", times) / bench.boot, 0.7)


ROWS = [boot, run, restore, restore_sizes, pause, idle_bytes, teleport, memory, forks]
