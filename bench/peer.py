# SPDX-License-Identifier: Apache-2.0
"""What Kelpie is measured against: a plain QEMU with the same kernel, initramfs and guest agent, spoken to over QMP and
guest frames (docs/formats/guest-frames.md)."""

import json
import os
import select
import signal
import socket
import struct
import subprocess
import time

HELLO, EXEC, DATA, HELLO_ACK, EXIT, ERROR = 1, 2, 64, 128, 130, 132
NONCE, ARG = 1, 7
FLAGS = ("panic=-1 quiet tsc_early_khz={khz} tsc=reliable no_timer_check cryptomgr.notests mitigations=off "
         "init_on_alloc=0 lsm= audit=0 ipv6.disable=1")


def tsc_khz():
    with open("/proc/cpuinfo", encoding="ascii") as file:
        for line in file:
            if line.startswith("cpu MHz"):
                return int(float(line.split(":")[1]) * 1000)
    return 0


class Guest:
    """The agent behind a Unix socket."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        end = time.monotonic() + 10
        while True:
            try:
                self.socket.connect(path)
                break
            except OSError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.001)
        self.buffer, self.channel = b"", 0

    def send(self, kind, channel, body):
        self.socket.sendall(struct.pack("<2sBBHHII", b"KG", 1, 0, kind, 0, channel, len(body)) + body)

    @staticmethod
    def field(tag, value):
        return struct.pack("<HHI", tag, 0, len(value)) + value

    def frame(self, deadline):
        """The next frame; bytes before its magic are an earlier session's."""
        while True:
            at = self.buffer.find(b"KG\1")
            if at >= 0 and len(self.buffer) >= at + 16:
                kind, _, channel, size = struct.unpack_from("<HHII", self.buffer, at + 4)
                if len(self.buffer) >= at + 16 + size:
                    body = self.buffer[at + 16:at + 16 + size]
                    self.buffer = self.buffer[at + 16 + size:]
                    return kind, channel, body
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.socket], [], [], left)[0]:
                raise TimeoutError("the guest does not answer")
            got = self.socket.recv(65536)
            if not got:
                raise ConnectionError("the guest is gone")
            self.buffer += got

    def hello(self, seconds=20):
        nonce, deadline = os.urandom(16), time.monotonic() + seconds
        self.send(HELLO, 0, self.field(NONCE, nonce))
        while True:
            kind, _, body = self.frame(deadline)
            if kind == HELLO_ACK and nonce in body:
                return

    def ask(self, *words, seconds=60):
        """Runs a word in the workload's cgroup; its output."""
        self.channel += 1
        out, deadline = b"", time.monotonic() + seconds
        self.send(EXEC, self.channel, b"".join(self.field(ARG, word.encode()) for word in words))
        while True:
            kind, channel, body = self.frame(deadline)
            if channel != self.channel:
                continue
            if kind == DATA:
                out += body
            elif kind == EXIT:
                return out
            elif kind == ERROR:
                raise RuntimeError(f"the guest refuses {words}")


class Qemu:
    """Started at once. `incoming`: waits for a migration."""

    def __init__(self, folder, name, kernel, initramfs, mib, incoming=None):
        self.paths = {what: os.path.join(folder, f"{name}.{what}") for what in ("qmp", "agent")}
        for path in self.paths.values():
            if os.path.exists(path):
                os.unlink(path)
        command = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial",
                   "none", "-smp", "1", "-accel", "tcg", "-cpu", "EPYC-Rome", "-M", "microvm", "-m", str(mib),
                   "-kernel", kernel, "-initrd", initramfs, "-append", FLAGS.format(khz=tsc_khz()),
                   "-qmp", f"unix:{self.paths['qmp']},server=on,wait=off",
                   "-device", "virtio-serial-device,id=vs0",
                   "-chardev", f"socket,id=ag,path={self.paths['agent']},server=on,wait=off",
                   "-device", "virtserialport,bus=vs0.0,chardev=ag,name=agent.0,nr=1"]
        if incoming:
            command += ["-incoming", incoming]
        self.began = time.monotonic()
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                        stderr=subprocess.DEVNULL, start_new_session=True)
        self.qmp = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def guest(self):
        return Guest(self.paths["agent"])

    def command(self, execute, fds=(), **arguments):
        if self.qmp is None:
            connection = socket.socket(socket.AF_UNIX)
            while True:
                try:
                    connection.connect(self.paths["qmp"])
                    break
                except OSError:
                    time.sleep(0.001)
            self.connection = connection
            self.qmp = connection.makefile("rwb", buffering=0)
            self.qmp.readline()
            self.command("qmp_capabilities")
        line = json.dumps({"execute": execute, "arguments": arguments}).encode() + b"\n"
        socket.send_fds(self.connection, [line], list(fds))
        while True:
            answer = json.loads(self.qmp.readline())
            if "error" in answer:
                raise RuntimeError(f"{execute}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]

    def unlimited(self):
        self.command("migrate-set-parameters", **{"max-bandwidth": 1 << 40})
        self.command("migrate-set-capabilities", capabilities=[{"capability": "events", "state": True}])

    def migrate(self, uri):
        """Only of a guest that was stopped: this QEMU's pre-copy loses writes of a running one under TCG."""
        self.command("migrate", uri=uri)
        while True:
            event = json.loads(self.qmp.readline())
            status = event.get("data", {}).get("status") if event.get("event") == "MIGRATION" else None
            if status == "completed":
                return
            if status == "failed":
                raise RuntimeError("QEMU's migration failed")

    def go_on(self):
        """After a migration QEMU refuses at first: retried as qemu-lab 2 does."""
        while True:
            try:
                return self.command("cont")
            except RuntimeError as error:
                if "not finalized" not in str(error):
                    raise
                time.sleep(0.0005)

    def save(self, path):
        with open(path, "wb") as file:
            self.command("getfd", fds=[file.fileno()], fdname="file")
            self.migrate("fd:file")


def boot_ms(folder, kernel, initramfs, mib):
    """From the start of the process to the answer of the agent."""
    with Qemu(folder, "boot", kernel, initramfs, mib) as qemu:
        guest = qemu.guest()
        guest.hello()
        return (time.monotonic() - qemu.began) * 1000
