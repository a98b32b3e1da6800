# SPDX-License-Identifier: Apache-2.0
"""What the end-to-end tests share: daemons with folders of their own, the command, a census of what is left.

Only built programs are used, from $KELPIE_BUILD. Each test is a function whose name begins with test_; run_tests
prints TAP. A test that cannot run raises Skip with the reason."""

import atexit
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback

BUILD = os.path.abspath(os.environ.get("KELPIE_BUILD", "build"))


class Skip(Exception):
    pass


class Failed(AssertionError):
    pass


def check(condition, what):
    if not condition:
        raise Failed(what)


def equal(actual, expected, what):
    if actual != expected:
        raise Failed(f"{what}: {actual!r} instead of {expected!r}")


def wait_until(condition, what, seconds=15.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise Failed(f"after {seconds} s still not: {what}")


class Result:
    def __init__(self, process):
        self.status = process.returncode
        self.out = process.stdout
        self.err = process.stderr.decode("utf-8", "replace")

    def text(self):
        return self.out.decode("utf-8", "replace")

    def json(self):
        return json.loads(self.out)

    def ok(self, what):
        if self.status != 0:
            raise Failed(f"{what}: status {self.status}\n{self.text()}{self.err}")
        return self


class Node:
    """One kelpied. Several share the world's store and registry."""

    def __init__(self, world, name, backend):
        self.world, self.name, self.backend = world, name, backend
        self.state = os.path.join(world.root, name)
        self.socket = os.path.join(world.root, name + ".sock")
        self.process = None

    def start(self, point=None, lease=None, arguments=(), wrapper=(), spare=False):
        environment = dict(world_environment())
        command = [*wrapper, os.path.join(BUILD, "kelpied"), "--state", self.state, "--name", self.name, "--listen",
                   "unix:" + self.socket, "--backend", self.backend, "--store", self.world.store, "--registry",
                   self.world.registry, "--test-points", "--lease", lease or self.world.lease, *arguments]
        if not spare:  # else every test had one VM more than it made
            command.append("--no-spare")
        if point:
            environment["KELPIE_POINT"] = point
        self.log = open(self.state + ".log", "ab")
        self.process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=self.log,
                                        stderr=self.log, start_new_session=True)
        wait_until(lambda: self.process.poll() is not None or self.cli("version").status == 0,
                   f"{self.name} answers")
        if self.process.poll() is not None:
            raise Failed(f"{self.name} ended with {self.process.returncode}\n{self.log_text()}")
        return self

    def log_text(self):
        with open(self.state + ".log", "rb") as log:
            return log.read().decode("utf-8", "replace")[-6000:]

    def cli(self, *words, input=None, timeout=90):
        environment = dict(world_environment(), KELPIE_HOST="unix:" + self.socket)
        return Result(subprocess.run([os.path.join(BUILD, "kelpie"), *words], env=environment,
                                     input=input if input is not None else b"", capture_output=True,
                                     timeout=timeout))

    def spawn(self, *words):
        environment = dict(world_environment(), KELPIE_HOST="unix:" + self.socket)
        return subprocess.Popen([os.path.join(BUILD, "kelpie"), *words], env=environment, stdin=subprocess.DEVNULL,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def agent(self, name):
        result = self.cli("inspect", name, "--json")
        return result.json()["agents"][0] if result.status == 0 else None

    def state_of(self, name):
        agent = self.agent(name)
        return agent["state"] if agent else None

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self):
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.kill()
            raise Failed(f"{self.name} does not end\n{self.log_text()}")

    def vm_folders(self):
        folder = os.path.join(self.state, "vms")
        return sorted(os.listdir(folder)) if os.path.isdir(folder) else []


_seed = None  # a store with image and template, made once for all worlds of real guests


def store_seed(backend):
    """Building an image and booting its template is the slow part of a world of real guests: done once, copied."""
    global _seed
    if _seed is None:
        doctor = subprocess.run([os.path.join(BUILD, "kelpied"), "--doctor"], capture_output=True,
                                env=world_environment())
        checks = {row["name"]: row for row in json.loads(doctor.stdout)["checks"]}
        if checks["backend"]["status"] == "fail":
            raise Skip(checks["qemu"]["detail"])
        with World(backend=backend, seeded=False) as world:
            node = world.node("seed")
            built = node.cli("image", "build", "base")
            if built.status in (12, 14):  # no package tools, or no packages to be had
                raise Skip(built.err.strip().splitlines()[0])
            built.ok("image build")
            node.cli("run", "-d", "--name", "first").ok("run")
            node.cli("rm", "-f", "first").ok("rm")
            _seed = tempfile.mkdtemp(prefix="kelpie-seed-")
            atexit.register(shutil.rmtree, _seed, True)
            shutil.copytree(world.store, os.path.join(_seed, "store"))
    return os.path.join(_seed, "store")


class World:
    """A folder, a store, a registry, nodes. Leaves nothing behind, and checks that nothing was left."""

    def __init__(self, backend=None, lease="6s", seeded=True):
        backend = backend or os.environ.get("KELPIE_TEST_BACKEND", "mock")
        self.root = tempfile.mkdtemp(prefix="kelpie-e2e-")
        self.store = os.path.join(self.root, "store")
        self.registry = os.path.join(self.root, "registry.db")
        self.backend, self.lease, self.nodes = backend, lease, []
        if backend == "qemu" and seeded:
            shutil.copytree(store_seed(backend), self.store)

    def node(self, name, **options):
        node = Node(self, name, self.backend)
        self.nodes.append(node)
        return node.start(**options)

    def processes(self):
        """Every process that has to do with this world, children included: pid -> command line."""
        everyone, found = {}, {}
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/cmdline", "rb") as file:
                    words = file.read().replace(b"\0", b" ").decode("utf-8", "replace")
                with open(f"/proc/{pid}/stat") as file:
                    state, parent = file.read().rsplit(")", 1)[1].split()[:2]
                here = os.readlink(f"/proc/{pid}/cwd")
            except OSError:
                continue
            if state != "Z":
                everyone[int(pid)] = (int(parent), words, self.root in words or here.startswith(self.root))
        for pid, (_, words, ours) in everyone.items():
            at = pid
            while not ours and everyone.get(at, (0,))[0] > 1:
                at = everyone[at][0]
                ours = at in everyone and everyone[at][2] and "kelpie" in everyone[at][1]
            if ours:
                found[pid] = words
        return found

    def guests(self):
        """Of those, the hypervisors: pid -> command line."""
        return {pid: words for pid, words in self.processes().items()
                if "--mock-guest" in words or os.path.basename(words.split(" ")[0]).startswith("qemu-system")}

    def keepers(self):
        return [pid for pid, words in self.processes().items()
                if "kelpie-keeper" in words.split(" ")[0] and "--vm" in words]

    def memory_images(self):
        """Descriptors of memory objects held by this world's processes."""
        count = 0
        for pid in self.processes():
            try:
                count += sum("/memfd:" in os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd"))
            except OSError:
                continue
        return count

    def close(self, check_left=True):
        left = []
        try:
            for node in self.nodes:
                if node.process is not None and node.process.poll() is None and check_left:
                    names = node.cli("ps", "-a", "-q")
                    for name in names.text().split():
                        node.cli("rm", "-f", name)
            for node in self.nodes:
                node.stop()
            if check_left:
                end = time.monotonic() + 10
                while time.monotonic() < end and (left := list(self.processes().values())):
                    time.sleep(0.05)
        finally:
            for pid in self.processes():
                try:
                    os.kill(pid, signal.SIGKILL)
                except OSError:
                    pass
            shutil.rmtree(self.root, ignore_errors=True)
        if left:
            raise Failed("processes left behind:\n  " + "\n  ".join(left))

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        logs = "" if kind is None else "\n".join(f"--- {n.name}\n{n.log_text()}" for n in self.nodes if n.process)
        self.close(check_left=kind is None)
        if kind is not None and kind is not Skip:
            print("# " + logs.replace("\n", "\n# "))
        return False


def world_environment():
    keep = {key: value for key, value in os.environ.items() if not key.startswith("KELPIE_")}
    keep["KELPIE_STATE"] = "/nonexistent"
    return keep


def run_tests(module, prefix=""):
    tests = [(name, value) for name, value in vars(module).items() if name.startswith("test_") and callable(value)]
    wanted = sys.argv[1:]
    if wanted:
        tests = [(name, value) for name, value in tests if any(word in name for word in wanted)]
    print(f"1..{len(tests)}")
    failed = 0
    for number, (name, test) in enumerate(tests, 1):
        try:
            test()
            print(f"ok {number} - {prefix}{name}", flush=True)
        except Skip as reason:
            print(f"ok {number} - {prefix}{name} # SKIP {reason}", flush=True)
        except Exception:
            failed += 1
            print(f"not ok {number} - {prefix}{name}")
            print("# " + traceback.format_exc().replace("\n", "\n# "), flush=True)
    return 1 if failed else 0
