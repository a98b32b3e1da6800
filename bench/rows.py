# SPDX-License-Identifier: Apache-2.0
"""The rows: each measures one promise and returns a Result. A row makes its own agents and removes them; what it is
compared with is measured between its own rounds, so that a busy machine is busy for both."""

import os
import random
import re
import subprocess
import threading
import time

import forks
import memory
import peer
from client import Client, FirstAnswer, Unmeasured, Watcher, ms, now, open_echo, phases
from ruler import Phases, Result, Series

DIRTY_MIB = 33
SEEDS = 1000  # of a round
REST_S = 1.0  # for a daemon to be as idle as a user finds it: a spare hypervisor started, journals written


# ---- 1


def run_by_command(bench, node, name):
    """`kelpie run -d`, then `kelpie exec`, both as processes, to the last byte of the answer."""
    words = {"env": bench.environment(node), "stdin": subprocess.DEVNULL, "capture_output": True}
    kelpie = os.path.join(bench.build, "kelpie")
    began = now()
    ran = subprocess.run([kelpie, "run", "-d", "--name", name], **words)
    up = now()
    asked = subprocess.run([kelpie, "exec", name, "@count"], **words)
    ended = now()
    if ran.returncode != 0 or asked.returncode != 0:
        raise Unmeasured((ran.stderr + asked.stderr).decode("utf-8", "replace"))
    return ms(ended - began), ms(up - began), ms(ended - up)


def row_run(bench):
    result = Result("`kelpie run` from a template to the first answer of `kelpie exec`")
    node, whole, run, ask, boots = bench.a, [], [], [], []
    bench.template(512)
    for number in range(bench.rounds):
        bench.rest()
        times = run_by_command(bench, node, f"run{number}")
        for series, value in zip((whole, run, ask), times):
            series.append(value)
        bench.client(node).remove(f"run{number}")
        boots.append(bench.boot())
    result.check(Series("run + exec", whole), 1 / 8, Series("boot", boots), limit_text="≤ 1/8 of a boot")
    result.note(f"run {Series('', run).text()}, exec {Series('', ask).text()}")
    return result


# ---- 2


def agent_in_use(bench, name, memory_mib, fill_mib):
    """A snapshot of a running agent that has something in memory; the agent is gone."""
    client = bench.client(bench.a)
    client.run(name, memory_mib)
    client.exec(name, ["@fill", str(fill_mib), "7"])
    client.must("POST", f"/v1/agents/{name}/snapshots", {"name": f"{name}-shot"})
    client.remove(name)
    return f"{name}-shot"


def restored(client, snapshot, name, steps=None):
    """Milliseconds from the request to the answer of the thawed workload; the agent is removed."""
    began = now()
    operation = client.operate(f"/v1/snapshots/{snapshot}/restore", {"name": name})
    up = now()
    client.count(name)
    ended = now()
    if steps is not None:
        steps.add({**phases(operation), "[request in all": ms(up - began), "first answer after it": ms(ended - up)})
    client.remove(name)
    return ms(ended - began)


def forget_files(folder):
    """What an ordinary user can do about the page cache."""
    for top, _, names in os.walk(folder):
        for name in names:
            fd = os.open(os.path.join(top, name), os.O_RDONLY)
            try:
                os.fsync(fd)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(fd)


def restored_cold(bench, shot, number, steps):
    """On a daemon that was never used, with a state folder of its own; only the store is shared."""
    node = bench.world.node(f"cold{number}", spare=True)
    try:
        forget_files(bench.world.store)
        return restored(Client(node.socket), shot, f"cold{number}", steps)
    finally:
        node.stop()


def row_restore(bench):
    result = Result("restore of a snapshot to the first answer of its workload")
    client, warm, cold, boots = bench.client(bench.a), [], [], []
    warm_steps, cold_steps = Phases("resident"), Phases("nothing resident")
    shot = agent_in_use(bench, "used", 512, 16)
    for number in range(bench.rounds):
        bench.rest()
        warm.append(restored(client, shot, f"warm{number}", warm_steps))
        boots.append(bench.boot())
        cold.append(restored_cold(bench, shot, number, cold_steps))
    boot = Series("boot", boots)
    result.check(Series("512 MiB, template resident", warm), 1 / 8, boot, limit_text="≤ 1/8 of a boot")
    result.check(Series("512 MiB, template resident", warm), 125, strict=True)
    result.check(Series("512 MiB, nothing resident", cold), 1 / 3, boot, limit_text="≤ 1/3 of a boot")
    result.check(*restore_sizes(bench))
    result.note(warm_steps)
    result.note(cold_steps)
    return result


def restore_sizes(bench):
    sizes, client = {128: [], 2048: []}, bench.client(bench.a)
    shots = {size: agent_in_use(bench, f"used{size}", size, 16) for size in sizes}
    for number in range(bench.rounds):
        for size in sizes:  # a spare is of one template: each size's own is made before it is measured
            bench.template(size)
            bench.rest()
            sizes[size].append(restored(client, shots[size], f"size{size}-{number}"))
    return Series("2 GiB, 16 MiB used", sizes[2048]), 1.3, Series("128 MiB, 16 MiB used", sizes[128])


# ---- 3


def watched_pause(channel, act):
    """The longest silence while `act` is done, and while nothing is, of a program asked every millisecond."""
    watcher = Watcher(channel)
    watcher.settle(0.4)
    quiet = watcher.longest_gap(now() - 0.3, now())
    began = now()
    act()
    ended = now()
    time.sleep(0.2)
    watcher.stop()
    if watcher.last() < ended:
        raise Unmeasured("the program did not go on answering")
    return ms(watcher.longest_gap(began, ended)), ms(quiet), ms(ended - began)


def kelpie_pause(bench, number):
    client, name = bench.client(bench.a), f"busy{number}"
    client.run(name, 512)
    client.exec(name, ["@fill", str(DIRTY_MIB), str(number)])
    bench.rest()
    stream, told = open_echo(bench.a.socket, name), {}
    times = watched_pause(stream, lambda: told.update(client.must("POST", f"/v1/agents/{name}/snapshots", {})))
    stream.close()
    client.remove(name)
    return *times, told["snapshots"][0]["pause_us"] / 1000


def qemu_pause(bench, raw, echo, number):
    raw.session.ask(["@fill", str(DIRTY_MIB), str(number)])
    path = os.path.join(bench.folder, "saved")

    def save():
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        raw.qmp.command("stop")
        raw.qmp.command("getfd", fd, fdname="saved")
        raw.qmp.command("migrate", uri="fd:saved")
        raw.qmp.migrated()
        raw.cont()
        os.close(fd)

    times = watched_pause(echo, save)
    os.unlink(path)
    return times


def row_pause(bench):
    result = Result(f"pause of a snapshot with {DIRTY_MIB} MiB dirty, as a client of the workload sees it")
    ours, theirs, told, quiet, whole = [], [], [], [], []
    with peer.RawGuest(bench.image, bench.folder, 512) as raw:
        raw.control()
        raw.session.ask(["@count"])
        echo = raw.session.echo()
        for number in range(bench.rounds):
            pause, silence, took, by_daemon = kelpie_pause(bench, number)
            for series, value in zip((ours, quiet, whole, told), (pause, silence, took, by_daemon)):
                series.append(value)
            theirs.append(qemu_pause(bench, raw, echo, number)[0])
    result.check(Series("longest silence", ours), 0.5, Series("QEMU stop, migrate to a file, cont", theirs))
    result.note(f"by the daemon's clock {Series('', told).text()}; the request in all {Series('', whole).text()}; "
                f"longest silence while nothing happens {Series('', quiet).text()}")
    return result


# ---- 4


def bytes_written(pids):
    """Bytes for storage, by the kernel's count; memory objects are none."""
    total = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/io", encoding="ascii") as file:
                fields = dict(line.split(": ") for line in file.read().splitlines())
            total += int(fields["write_bytes"]) - int(fields["cancelled_write_bytes"])
        except OSError:
            continue
    return total


def folder_bytes(folder):
    return sum(os.lstat(os.path.join(top, name)).st_size for top, _, names in os.walk(folder) for name in names)


def row_written(bench):
    result = Result("bytes written by a snapshot of an idle clone, 512 MiB")
    written, grown = [], []
    client = bench.client(bench.a)
    for number in range(bench.rounds):
        name = f"idle{number}"
        client.run(name, 512)
        bench.rest()
        time.sleep(1)
        pids = [pid for pid in bench.world.processes() if memory.program(pid) in memory.PROGRAMS]
        before, store = bytes_written(pids), folder_bytes(bench.world.store)
        client.must("POST", f"/v1/agents/{name}/snapshots", {})
        written.append((bytes_written(pids) - before) / 1048576)
        grown.append((folder_bytes(bench.world.store) - store) / 1048576)
        client.remove(name)
    larger = written if max(written) > max(grown) else grown
    result.check(Series("written", larger, "MiB"), 0.02, Series("guest memory", [512], "MiB"),
                 limit_text="≤ 2 % of memory")
    result.note(f"for storage by the kernel's count {Series('', written, 'MiB').text()}; growth of the store "
                f"{Series('', grown, 'MiB').text()}")
    return result


# ---- 5


def kelpie_blackout(bench, source, destination, name, steps):
    client = bench.client(source)
    before = client.count(name)
    stream = open_echo(source.socket, name)
    watcher = Watcher(stream)
    watcher.settle(0.3)
    first = FirstAnswer(destination.socket, name, watcher)
    operation = client.operate(f"/v1/agents/{name}/teleport", {"destination": destination.name})
    came = first.wait()
    watcher.stop()
    stream.close()
    if int(first.text) <= before:
        raise Unmeasured(f"the workload's count went from {before} to {int(first.text)}: it is not the same")
    steps.add({**phases(operation), "[blackout by the daemon": operation["blackout_us"] / 1000,
               "first answer: asked to answered": ms(came - first.asked)})
    bench.statuses.append(first.statuses)
    return ms(came - watcher.last())


def qemu_blackout(bench, source):
    """Returns the milliseconds and the guest at its destination; the source is closed."""
    path = os.path.join(bench.folder, "move")
    destination = peer.RawGuest(bench.image, bench.folder, 512, incoming=path)
    try:
        channel = destination.session.exec(["@count"])  # lies in the socket until there is a guest to read it
        destination.control()
        watcher = Watcher(source.session.echo())
        watcher.settle(0.3)
        source.qmp.command("stop")
        source.qmp.command("migrate", uri="unix:" + path)
        destination.qmp.migrated()  # a cont before that would be forgotten
        destination.qmp.command("cont")
        destination.session.line(channel)
        came = now()
        watcher.stop()
    except BaseException:
        destination.close()
        raise
    source.close()
    return ms(came - watcher.last()), destination


def qemu_blackouts(bench):
    """Of a guest that was booted, and once more of the same: its memory was touched as a whole by then, which spares
    QEMU a page fault for every page that the guest never used."""
    raw = peer.RawGuest(bench.image, bench.folder, 512).control()
    try:
        raw.session.ask(["@count"])
        time.sleep(0.5)
        first, raw = qemu_blackout(bench, raw)
        second, raw = qemu_blackout(bench, raw)
    finally:
        raw.close()
    return first, second


def row_teleport(bench):
    result = Result("teleport blackout of an idle 512 MiB guest: last answer at the source to first at the destination")
    ours, booted, touched, boots, steps = [], [], [], [], Phases("teleport")
    bench.client(bench.a).run("mover", 512)
    nodes = (bench.a, bench.b)
    for node in nodes:
        bench.template(512, node)
    for number in range(bench.rounds):
        bench.rest()
        ours.append(kelpie_blackout(bench, nodes[number % 2], nodes[1 - number % 2], "mover", steps))
        for series, value in zip((booted, touched), qemu_blackouts(bench)):
            series.append(value)
        boots.append(bench.boot())
    bench.client(bench.a).remove("mover")
    series = Series("blackout", ours)
    result.check(series, 1 / 6, Series("boot", boots), limit_text="≤ 1/6 of a boot")
    result.check(series, 1.0, Series("QEMU stop, migrate, cont", booted))
    result.check(series, 1.0, Series("the same of a guest whose whole memory was touched", touched))
    result.note(steps)
    return result


# ---- 6


def peak_of(bench, memory_mib, fill_mib):
    """A world of its own, so that no allocator remembers an earlier row."""
    with bench.other_world() as world:
        a, b = world.node("a", spare=True), world.node("b", spare=True)
        client = Client(a.socket)
        client.run("fat", memory_mib)
        if fill_mib:
            client.exec("fat", ["@fill", str(fill_mib), str(random.getrandbits(32))])
        time.sleep(REST_S)
        peak = memory.Peak(world.processes)
        client.must("POST", "/v1/agents/fat/snapshots", {})
        client.operate("/v1/agents/fat/teleport", {"destination": "b"})
        own = peak.stop()
        checked = Client(b.socket).exec("fat", ["@check"]).split()
        if checked[1] != "bad=0":
            raise Unmeasured(f"pages are wrong after the move: {checked}")
        Client(b.socket).remove("fat")
        return own, peak


def row_memory(bench):
    result = Result("peak memory of Kelpie's processes over a snapshot and a teleport, less guest memory and layers")
    small, small_peak = peak_of(bench, 128, 24)
    large, large_peak = peak_of(bench, 2048, 1536)
    result.check(Series("2 GiB guest, 1.5 GiB incompressible", [large], "MiB"), 1.2,
                 Series("128 MiB guest, 24 MiB incompressible", [small], "MiB"))
    for title, peak in (("128 MiB", small_peak), ("2 GiB", large_peak)):
        parts = ", ".join(f"{name} {kib / 1024:.1f} MiB" for name, kib in sorted(peak.parts.items()))
        result.note(f"{title}: {parts}; left out at most {peak.guests_kib / 1024:.0f} MiB in mappings of "
                    f"{' '.join(sorted(peak.names))}; {peak.samples} samples")
    return result


# ---- 7


def forked(client, parent, steps):
    """Milliseconds to the last of ten first answers; names."""
    began, answered = now(), {}
    operation = client.operate(f"/v1/agents/{parent}/fork", {"count": 10})
    up = now()

    def ask(name):
        Client(client.path).count(name)
        answered[name] = now()

    askers = [threading.Thread(target=ask, args=(name,), daemon=True) for name in operation["results"]]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join(60)
    if len(answered) != 10:
        raise Unmeasured(f"{len(answered)} of ten forks answered")
    last = max(answered.values())
    steps.add({**phases(operation), "[request in all": ms(up - began), "ten first answers after it": ms(last - up)})
    return ms(last - began), operation["results"]


def row_forks(bench):
    result = Result("ten forks at once of a running agent with 6 MiB filled: the last one answers")
    client, times, boots, steps = bench.client(bench.a), [], [], Phases("fork")
    client.run("parent", 512)
    client.exec("parent", ["@fill", "6", "7"])
    for number in range(bench.rounds):
        bench.rest()
        took, names = forked(client, "parent", steps)
        times.append(took)
        if number == 0:
            time.sleep(1)
            faults = forks.faults(client, ["parent"] + names)
        for name in names:
            client.remove(name)
        bench.rest()  # else the boot has to share with what comes behind ten ends
        boots.append(bench.boot())
    client.remove("parent")
    result.check(Series("ten forks", times), 0.7, Series("boot", boots), limit_text="≤ 0.7 of a boot")
    result.check(Series("faults of uniqueness, clock, pages", [len(faults)], ""), 0, limit_text="0")
    for fault in faults:
        result.note(fault)
    result.note(steps)
    return result


# ---- 8


def simulated(program, first):
    """Runs of SEEDS seeds on one core: a second of its processor's time, moves and faults a run; the verdict."""
    core = min(os.sched_getaffinity(0))
    before = os.times()
    ran = subprocess.run([program, "--seeds", str(SEEDS)], env=dict(os.environ, DST_SEED=str(first)),
                         stdin=subprocess.DEVNULL, capture_output=True, text=True,
                         preexec_fn=lambda: os.sched_setaffinity(0, [core]))
    after = os.times()
    told = re.search(r"^runs=(\d+) teleports=([\d.]+) faults=([\d.]+)$", ran.stdout, re.M)
    if told is None:
        raise Unmeasured(ran.stderr.strip() or f"kelpie-dst ended with {ran.returncode}")
    seconds = after.children_user + after.children_system - before.children_user - before.children_system
    return int(told[1]) / seconds, float(told[2]), float(told[3]), ran.stdout.strip().split("\n")[-1]


def row_simulated(bench):
    result = Result("whole runs of the simulator a second and core")
    program = os.path.join(bench.build, "kelpie-dst")
    if not os.path.exists(program):
        raise Unmeasured("this build has no kelpie-dst")
    rounds = [simulated(program, 1 + number * SEEDS) for number in range(bench.rounds)]
    result.check(Series("simulated runs", [r[0] for r in rounds], "runs/s"), 2000, least=True)
    result.check(Series("moves a run", [r[1] for r in rounds], ""), 2, least=True, limit_text="≥ 2")
    result.check(Series("faults a run", [r[2] for r in rounds], ""), 3, least=True, limit_text="≥ 3")
    for last in dict.fromkeys(r[3] for r in rounds if not r[3].endswith("verdict=pass")):
        result.note(last)
    return result


ROWS = {1: row_run, 2: row_restore, 3: row_pause, 4: row_written, 5: row_teleport, 6: row_memory, 7: row_forks,
        8: row_simulated}
WITHOUT_NODES = {8}
