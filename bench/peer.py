# SPDX-License-Identifier: Apache-2.0
"""What Kelpie is compared with: a raw QEMU of the same kernel and initramfs, and what QEMU itself offers for saving
and moving a guest (`stop`, `migrate` of a guest that stands still, `cont`).

Never QEMU's iterative pre-copy: under TCG before 9.0 it corrupts guest memory."""

import ctypes
import json
import mmap
import os
import signal
import socket
import subprocess
import time

import guest
from client import Unmeasured, now

FLAGS = ("panic=-1 quiet tsc_early_khz={tsc} tsc=reliable no_timer_check cryptomgr.notests mitigations=off "
         "init_on_alloc=0 lsm= audit=0 ipv6.disable=1")
UNLIMITED = 1 << 40  # bytes a second


def tsc_khz():
    """The rate of the host's TSC, which under TCG is the guest's: counted against the raw clock for 50 ms. A microvm
    that is not told it now and then hangs at boot."""
    code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(bytes.fromhex("0f3148c1e2204809d0c3"))  # rdtsc; shl rdx, 32; or rax, rdx; ret
    rdtsc = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
    began, since = rdtsc(), time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
    time.sleep(0.05)
    return (rdtsc() - began) * 1000000 // (time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW) - since)


class Qmp:
    def __init__(self, path):
        self.sock = guest.connect(path)
        self.data, self.events = b"", []
        self.read()
        self.command("qmp_capabilities")

    def read(self):
        while b"\n" not in self.data:
            more = self.sock.recv(65536)
            if not more:
                raise ConnectionError("QEMU is gone")
            self.data += more
        line, self.data = self.data.split(b"\n", 1)
        return json.loads(line)

    def command(self, name, fd=None, **arguments):
        text = json.dumps({"execute": name, **({"arguments": arguments} if arguments else {})}).encode() + b"\n"
        if fd is None:
            self.sock.sendall(text)
        else:
            socket.send_fds(self.sock, [text], [fd])
        while True:
            answer = self.read()
            if "event" in answer:
                self.events.append(answer)
            elif "error" in answer:
                raise Unmeasured(f"QEMU: {name}: {answer['error']['desc']}")
            else:
                return answer["return"]

    def migrated(self):
        """Blocks until a migration has come to its end."""
        while True:
            answer = self.events.pop(0) if self.events else self.read()
            status = answer.get("data", {}).get("status") if answer.get("event") == "MIGRATION" else None
            if status == "failed":
                raise Unmeasured("QEMU's migration failed")
            if status == "completed":
                return


class RawGuest:
    """One raw QEMU. `began` is the moment before its process is started."""

    serial = 0

    def __init__(self, image, folder, memory_mib, incoming=None):
        RawGuest.serial += 1
        stem = os.path.join(folder, f"raw{RawGuest.serial}")
        self.agent_path, self.qmp_path = stem + ".agent", stem + ".qmp"
        command = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial",
                   "none", "-smp", "1", "-accel", "tcg", "-cpu", "EPYC-Rome", "-M", "microvm", "-m", str(memory_mib),
                   "-kernel", image.kernel, "-initrd", image.initramfs, "-append", FLAGS.format(tsc=image.tsc_khz),
                   "-qmp", f"unix:{self.qmp_path},server=on,wait=off", "-device", "virtio-serial-device,id=vs0",
                   "-chardev", f"socket,id=ag,path={self.agent_path},server=on,wait=off",
                   "-device", "virtserialport,bus=vs0.0,chardev=ag,name=agent.0,nr=1"]
        if incoming is not None:
            command += ["-incoming", "unix:" + incoming]
        self.began = now()
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                        stderr=subprocess.DEVNULL, start_new_session=True)
        self.session = guest.Session(self.agent_path)
        self.qmp = None

    def control(self):
        self.qmp = Qmp(self.qmp_path)
        self.qmp.command("migrate-set-capabilities", capabilities=[{"capability": "events", "state": True}])
        self.qmp.command("migrate-set-parameters", **{"max-bandwidth": UNLIMITED})
        return self

    def cont(self):
        """Right after a migration it may say that that is not finalised yet."""
        for _ in range(200):
            try:
                return self.qmp.command("cont")
            except Unmeasured:
                time.sleep(0.0005)
        return self.qmp.command("cont")

    def close(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.session.close()
        for path in (self.agent_path, self.qmp_path):
            if os.path.exists(path):
                os.unlink(path)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def boot_ms(image, folder, memory_mib=256):
    """From the start of the process to the first answer of the guest's workload process."""
    with RawGuest(image, folder, memory_mib) as raw:
        try:
            raw.session.ask(["@count"])
        except ConnectionError as fault:
            raise Unmeasured(f"a raw QEMU ended with {raw.process.wait(5)} while it booted: {fault}") from fault
        return (now() - raw.began) * 1000
