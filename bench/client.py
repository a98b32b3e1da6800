# SPDX-License-Identifier: Apache-2.0
"""Asking: a daemon by HTTP on its Unix socket, and a program in a guest every millisecond.

No command is spawned here: at the resolution of a millisecond a process start is most of the figure."""

import base64
import http.client
import json
import select
import socket
import struct
import threading
import time

TICK_S = 0.001
IDLE_S = 3
COUNT = ["@count"]  # answered by the guest's workload process, which is frozen and thawed with the workload
ECHO = ["@cat"]     # a program of the workload that sends every line back, frozen and thawed with it


class Unmeasured(Exception):
    """This row has no figure on this machine, and why."""


def now():
    return time.perf_counter()


def ms(seconds):
    return seconds * 1000


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path, timeout):
        super().__init__("localhost", timeout=timeout)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class Client:
    """One persistent connection to one daemon, which closes it when it has been idle for long: made anew before."""

    def __init__(self, path, timeout=180):
        self.path, self.used = path, now()
        self.connection = UnixConnection(path, timeout)

    def call(self, method, path, body=None):
        if now() - self.used > IDLE_S:
            self.connection.close()
        text = None if body is None else json.dumps(body)
        self.connection.request(method, path, text, {} if text is None else {"Content-Type": "application/json"})
        answer = self.connection.getresponse()
        data, self.used = answer.read(), now()
        return answer.status, json.loads(data) if data else {}

    def must(self, method, path, body=None):
        status, document = self.call(method, path, body)
        if status >= 300:
            raise Unmeasured(f"{method} {path}: HTTP {status}: {document.get('detail', document)}")
        return document

    def run(self, name, memory_mib, **more):
        return self.must("POST", "/v1/agents", {"name": name, "memory_bytes": memory_mib << 20, "start": True, **more})

    def remove(self, name):
        self.must("DELETE", f"/v1/agents/{name}?force=1")

    def exec(self, name, argv):
        answer = self.must("POST", f"/v1/agents/{name}/exec?timeout_ms=170000", {"argv": argv})
        if answer["exit_code"] != 0:
            raise Unmeasured(f"{argv[0]} in {name}: {base64.b64decode(answer['stderr_base64']).decode()}")
        return base64.b64decode(answer["stdout_base64"]).decode()

    def count(self, name):
        return int(self.exec(name, COUNT))

    def operate(self, path, body):
        """An operation from its request to its end; returns its document."""
        row = self.must("POST", path + "?wait_ms=170000", body)["operations"][0]
        while row["state"] == "running":
            row = self.must("GET", f"/v1/operations/{row['id']}?wait_ms=170000")["operations"][0]
        if row["state"] != "done":
            raise Unmeasured(f"{path}: {row['state']}: {row['error']}")
        return row


def phases(operation):
    return {row["step"]: row["us"] / 1000 for row in operation["phases"]}


# ---- a stream to a program in a guest


class Stream:
    """A streaming exec. `status` is the HTTP status: only 101 opens a stream, and any other leaves the connection
    to be asked again."""

    def __init__(self, path):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(path)
        self.status, self.data, self.ended = 0, b"", False

    def ask(self, agent, argv):
        body = json.dumps({"argv": argv}).encode()
        self.sock.sendall(b"POST /v1/agents/%s/exec HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n"
                          b"Upgrade: kelpie-exec\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
                          % (agent.encode(), len(body), body))
        while b"\r\n\r\n" not in self.data:
            self.fill()
        head, self.data = self.data.split(b"\r\n\r\n", 1)
        self.status = int(head.split(b" ", 2)[1])
        if self.status != 101:
            lines = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
            while len(self.data) < int(lines.get(b"content-length", b"0")):
                self.fill()
            self.data = b""
        return self.status

    def fill(self):
        data = self.sock.recv(65536)
        if not data:
            raise ConnectionError("the stream has ended")
        self.data += data

    def fileno(self):
        return self.sock.fileno()

    def send(self, data):
        self.sock.sendall(struct.pack(">B3xI", 0, len(data)) + data)

    def receive(self):
        """What has come on stdout; blocks for at most what is on its way."""
        self.fill()
        out = b""
        while len(self.data) >= 8:
            kind, size = struct.unpack(">B3xI", self.data[:8])
            if len(self.data) < 8 + size:
                break
            out += self.data[8:8 + size] if kind == 1 else b""
            self.ended = self.ended or kind == 3
            self.data = self.data[8 + size:]
        if self.ended and not out:
            raise ConnectionError("the program has ended")
        return out

    def close(self):
        self.sock.close()


def open_echo(path, agent):
    stream = Stream(path)
    if stream.ask(agent, ECHO) != 101:
        raise Unmeasured(f"no stream to {agent}: HTTP {stream.status}")
    return stream


class Watcher(threading.Thread):
    """Asks an echoing program every millisecond (a question more only once the last was answered) and notes when
    each answer came, until it is stopped or the program is gone."""

    def __init__(self, channel):
        super().__init__(daemon=True)
        self.channel, self.answers, self.halt = channel, [], threading.Event()
        self.start()

    def run(self):
        number = 0
        try:
            while not self.halt.is_set():
                asked, number = now(), number + 1
                question = b"%08d\n" % number
                self.channel.send(question)
                if not self.echoed(question):
                    return
                self.answers.append(now())
                time.sleep(max(0.0, asked + TICK_S - now()))
        except OSError:  # the source of a move, once it is gone
            return

    def echoed(self, question):
        got = b""
        while not self.halt.is_set():
            if select.select([self.channel], [], [], 0.05)[0]:
                got += self.channel.receive()
                if got.endswith(question):
                    return True
        return False

    def last(self):
        return self.answers[-1] if self.answers else 0.0

    def settle(self, seconds):
        """Until it has been answered for so long; else there is nothing to compare a gap with."""
        end = now() + 20
        time.sleep(seconds)
        while len(self.answers) < 20:
            if now() > end or not self.is_alive():
                raise Unmeasured("the guest's program does not answer")
            time.sleep(0.01)

    def stop(self):
        self.halt.set()
        self.join(5)

    def longest_gap(self, since, until):
        """Between two answers that follow one another, in seconds, of those in which the span falls."""
        pairs = zip(self.answers, self.answers[1:])
        return max((b - a for a, b in pairs if b >= since and a <= until), default=0.0)


class FirstAnswer(threading.Thread):
    """Asks a daemon every millisecond for an answer of the agent's workload, from the moment the source is silent."""

    def __init__(self, path, agent, source):
        super().__init__(daemon=True)
        self.path, self.agent, self.source = path, agent, source
        self.time, self.text, self.asked, self.fault = None, b"", 0.0, None
        self.statuses, self.halt = {}, threading.Event()
        self.start()

    def run(self):
        try:
            stream = Stream(self.path)
            while not self.halt.is_set():
                self.asked = asked = now()
                if asked - self.source.last() > 3 * TICK_S:
                    status = stream.ask(self.agent, COUNT)
                    self.statuses[status] = self.statuses.get(status, 0) + 1
                    if status == 101 and self.answered(stream):
                        return
                    if status == 101:
                        stream = Stream(self.path)
                time.sleep(max(0.0, asked + TICK_S - now()))
        except OSError as fault:
            self.fault = fault

    def answered(self, stream):
        try:
            while not self.text.endswith(b"\n"):
                self.text += stream.receive()
                self.time = now()
            return True
        except ConnectionError:
            self.text, self.time = b"", None
            return False
        finally:
            stream.close()

    def wait(self):
        self.join(30)
        self.halt.set()
        if self.time is None:
            raise Unmeasured(f"no answer of {self.agent} at its destination: {self.fault or self.statuses}")
        return self.time
