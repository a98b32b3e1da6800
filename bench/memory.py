# SPDX-License-Identifier: Apache-2.0
"""The peak of what Kelpie's own processes hold in memory, guests and their layers left out.

Counted is the Pss of every mapping of every kelpied, kelpie-keeper (its children included) and kelpie-pager. Left
out are mappings of memory objects (memfd), which in these processes hold nothing but guest memory: a template, a
diff, captured dirty pages, device state. Their names are collected, so that a look shows what was left out. The
hypervisor's own processes are not Kelpie's."""

import os
import threading
import time

PROGRAMS = ("kelpied", "kelpie-keeper", "kelpie-pager")
REST_MIN_S, REST_FACTOR = 0.002, 4  # between samples: the kernel walks every page, which must not slow what is watched
SEARCH_S = 0.1


def program(pid):
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return os.path.basename(file.read().split(b"\0")[0].decode("utf-8", "replace"))
    except OSError:
        return ""


def pss_kib(pid):
    """(own, of guests), and the names of the objects left out."""
    own = guests = 0
    names, skipping = set(), False
    try:
        with open(f"/proc/{pid}/smaps", encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith("Pss:"):
                    size = int(line.split()[1])
                    own, guests = (own, guests + size) if skipping else (own + size, guests)
                elif "-" in line.split(" ", 1)[0]:
                    path = line.split(None, 5)[5].strip() if len(line.split(None, 5)) > 5 else ""
                    skipping = path.startswith("/memfd:")
                    if skipping:
                        names.add(path.split(" ")[0])
    except OSError:
        pass
    return own, guests, names


class Peak(threading.Thread):
    """Samples until it is stopped. `processes` tells the world's processes: pid -> command line."""

    def __init__(self, processes):
        super().__init__(daemon=True)
        self.processes, self.halt = processes, threading.Event()
        self.own_kib = self.guests_kib = self.samples = 0
        self.parts, self.names = {}, set()
        self.start()

    def run(self):
        searched, pids = 0.0, []
        while not self.halt.is_set():
            if time.monotonic() - searched > SEARCH_S:
                pids = [pid for pid in self.processes() if program(pid) in PROGRAMS]
                searched = time.monotonic()
            began = time.monotonic()
            self.sample(pids)
            time.sleep(max(REST_MIN_S, REST_FACTOR * (time.monotonic() - began)))

    def sample(self, pids):
        total, guests, parts = 0, 0, {}
        for pid in pids:
            own, of_guests, names = pss_kib(pid)
            total, guests = total + own, guests + of_guests
            self.names |= names
            name = program(pid)
            parts[name] = parts.get(name, 0) + own
        self.samples += 1
        self.guests_kib = max(self.guests_kib, guests)
        if total > self.own_kib:
            self.own_kib, self.parts = total, parts

    def stop(self):
        self.halt.set()
        self.join(10)
        return self.own_kib / 1024
