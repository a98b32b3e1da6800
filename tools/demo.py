#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""`make demo`: a Python agent in a real VM is suspended, moved to another node and back, and forked into ten, while a
verifier inside it rewrites and checks 16 MiB page by page. Prints what was done, how long it took, how many bytes
moved, and what was verified. Leaves nothing behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

BUILD = os.path.abspath(os.environ.get("KELPIE_BUILD", "build"))
FORKS = 10

AGENT = r'''
import hashlib, os, time
PAGE, PAGES = 4096, 4096                      # 16 MiB
def content(page, generation):
    return (page.to_bytes(8, "little") + generation.to_bytes(8, "little")) * (PAGE // 16)
memory = [bytearray(content(page, 0)) for page in range(PAGES)]
table, generation, bad = {}, 0, 0
while True:
    for page in range(PAGES):
        if memory[page] != content(page, generation):
            bad += 1
        memory[page][:] = content(page, generation + 1)
        if page % 64 == 0:
            table[len(table)] = hashlib.sha256(str(len(table)).encode()).hexdigest()
            text = f"rows={len(table)} last={table[len(table) - 1][:12]} passes={generation} bad={bad}\n"
            with open("/run/agent.new", "w") as file:
                file.write(text)
            os.rename("/run/agent.new", "/run/agent.status")
            time.sleep(0.002)
    generation += 1
'''


class Demo:
    def __init__(self):
        self.root = tempfile.mkdtemp(prefix="kelpie-demo-")
        self.daemons, self.rows, self.bad = {}, [], 0

    # ---- two nodes that share a store and a registry, each with a state folder of its own

    def start_node(self, name):
        socket = os.path.join(self.root, name + ".sock")
        log = open(os.path.join(self.root, name + ".log"), "wb")
        process = subprocess.Popen(
            [os.path.join(BUILD, "kelpied"), "--name", name, "--state", os.path.join(self.root, name), "--listen",
             "unix:" + socket, "--store", os.path.join(self.root, "store"), "--registry",
             os.path.join(self.root, "registry.db"), "--backend", os.environ.get("KELPIE_DEMO_BACKEND", "auto"),
             "--stop-agents"],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env=self.environment())
        self.daemons[name] = (process, socket)
        end = time.monotonic() + 30
        while self.kelpie(name, "version", check=False).returncode != 0:
            if process.poll() is not None or time.monotonic() > end:
                with open(log.name, "rb") as text:
                    raise SystemExit(text.read().decode("utf-8", "replace"))
            time.sleep(0.05)

    @staticmethod
    def environment():
        return {key: value for key, value in os.environ.items() if not key.startswith("KELPIE_")}

    def kelpie(self, node, *words, check=True, input=b""):
        environment = dict(self.environment(), KELPIE_HOST="unix:" + self.daemons[node][1])
        result = subprocess.run([os.path.join(BUILD, "kelpie"), *words], env=environment, input=input,
                                capture_output=True)
        if check and result.returncode != 0:
            raise SystemExit(f"kelpie {' '.join(words)}: status {result.returncode}\n"
                             + result.stderr.decode("utf-8", "replace"))
        return result

    # ---- what is shown

    def row(self, what, began, verified, bytes_moved=None, note=""):
        ms = (time.monotonic() - began) * 1000
        moved = "" if bytes_moved is None else f"{bytes_moved / 1048576:.1f} MiB"
        self.rows.append((what, f"{ms:.0f} ms", moved, verified + (", " + note if note else "")))
        print(f"  {what:<34} {ms:>8.0f} ms  {moved:>10}  {self.rows[-1][3]}", flush=True)

    def status(self, node, name):
        text = self.kelpie(node, "exec", name, "cat", "/run/agent.status").stdout.decode()
        return dict(part.split("=") for part in text.split())

    def verified(self, node, name, before=None):
        """The agent's own word: its table grew on, its pages are right."""
        first = self.status(node, name)
        end = time.monotonic() + 20
        while (now := self.status(node, name))["rows"] == first["rows"]:
            if time.monotonic() > end:
                raise SystemExit(f"{name} does not go on")
            time.sleep(0.01)
        self.bad += int(now["bad"])
        if before is not None and int(first["rows"]) < int(before["rows"]):
            raise SystemExit(f"{name} lost rows: {first['rows']} after {before['rows']}")
        return f"{now['rows']} rows, {now['bad']} bad pages"

    def operation(self, node, kind):
        rows = json.loads(self.kelpie(node, "ops", "--json").stdout)["operations"]
        return [row for row in rows if row["kind"] == kind][-1]

    # ---- the steps

    def run(self):
        print("Two nodes, a and b, each with a state folder of its own:")
        self.start_node("a")
        self.start_node("b")
        began = time.monotonic()
        self.kelpie("a", "image", "build", "python")
        self.row("build the image (kernel, Python 3)", began, "from Debian packages, without root")

        began = time.monotonic()
        self.kelpie("a", "run", "-d", "--name", "probe", "--memory", "512M", "python")
        self.row("first run: boot a template, seal it", began, "kept in the store")
        self.kelpie("a", "rm", "-f", "probe")

        began = time.monotonic()
        self.kelpie("a", "run", "-d", "--name", "agent", "--memory", "512M", "python", "--", "python3", "-c", AGENT)
        self.kelpie("a", "exec", "agent", "true")
        self.row("run the agent: a clone of it", began, "answers")
        while self.kelpie("a", "exec", "agent", "cat", "/run/agent.status", check=False).returncode != 0:
            time.sleep(0.1)
        before = self.status("a", "agent")

        began = time.monotonic()
        self.kelpie("a", "suspend", "agent")
        operation = self.operation("a", "suspend")
        self.row("suspend", began, "its VM is gone", operation["bytes_moved"])
        began = time.monotonic()
        self.kelpie("a", "resume", "agent")
        self.row("resume", began, self.verified("a", "agent", before))

        for source, destination in (("a", "b"), ("b", "a")):
            before = self.status(source, "agent")
            began = time.monotonic()
            self.kelpie(source, "teleport", "agent", destination)
            operation = self.operation(source, "teleport")
            took = began
            self.row(f"teleport from {source} to {destination}", took, self.verified(destination, "agent", before),
                     operation["bytes_moved"], f"stood still {operation['blackout_ms']} ms")

        before = self.status("a", "agent")
        began = time.monotonic()
        names = self.kelpie("a", "fork", "agent", "-c", str(FORKS), "-q").stdout.decode().split()
        for name in names:
            self.kelpie("a", "exec", name, "true")
        self.row(f"fork into {len(names)}, all answer", began, f"{len(names)} new identities",
                 self.operation("a", "fork")["bytes_moved"])
        began = time.monotonic()
        for name in names:
            self.verified("a", name, before)
        ids = {self.kelpie("a", "exec", name, "cat", "/etc/machine-id").stdout for name in names}
        self.row("ask each fork", began, f"{len(ids)} machine ids, {self.bad} bad pages in all")
        if len(ids) != len(names) or self.bad != 0:
            raise SystemExit("the forks are not unique, or pages are wrong")

        print(f"\nNot a byte was lost: {self.bad} bad pages, no row missing.\n\nTry by hand:")
        print("  build/kelpie doctor\n  build/kelpie image build base\n  build/kelpie run -d --name web\n"
              "  build/kelpie exec web uname -a\n  build/kelpie snapshot create web -n first\n"
              "  build/kelpie fork web -c 3\n  build/kelpie ps\n  build/kelpie rm -f web")

    def close(self):
        for process, _ in self.daemons.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process, _ in self.daemons.values():
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
        shutil.rmtree(self.root, ignore_errors=True)


def main():
    demo = Demo()
    try:
        demo.run()
    finally:
        demo.close()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    main()
