# SPDX-License-Identifier: Apache-2.0
"""The agent in a guest spoken to without a daemon (docs/formats/guest-frames.md), so that a bare QEMU is asked the
same question as an agent of Kelpie's, and by the shortest way there is."""

import os
import socket
import struct
import time

HELLO, EXEC, DATA, HELLO_ACK, EXIT, ERROR = 1, 2, 64, 128, 130, 132
NONCE, GENERATION, EPOCH, ARG, CODE, TEXT = 1, 2, 3, 7, 27, 30
FLAG_STDERR = 2


def field(tag, value):
    value = struct.pack("<Q", value) if isinstance(value, int) else value
    return struct.pack("<HHI", tag, 0, len(value)) + value


def frame(kind, channel, body, flags=0):
    return struct.pack("<2sBBHHII", b"KG", 1, flags, kind, 0, channel, len(body)) + body


def fields(body):
    at, found = 0, {}
    while at < len(body):
        tag, _, size = struct.unpack_from("<HHI", body, at)
        found[tag] = body[at + 8:at + 8 + size]
        at += 8 + size
    return found


class Session:
    """Opened with a question already on its way behind the greeting: nothing waits for a round trip."""

    def __init__(self, path):
        self.sock = connect(path)
        self.data, self.channels, self.out, self.ends = b"", 0, {}, {}
        self.greeted = False
        self.nonce = os.urandom(16)
        self.sock.sendall(frame(HELLO, 0, field(NONCE, self.nonce) + field(GENERATION, bytes(16)) + field(EPOCH, 1)))

    def exec(self, argv):
        self.channels += 1
        self.out[self.channels] = b""
        self.sock.sendall(frame(EXEC, self.channels, b"".join(field(ARG, word.encode()) for word in argv)))
        return self.channels

    def pump(self):
        """Takes what has come."""
        data = self.sock.recv(65536)
        if not data:
            raise ConnectionError("the guest is gone")
        self.data += data
        while len(self.data) >= 16:
            magic, _, flags, kind, _, channel, size = struct.unpack("<2sBBHHII", self.data[:16])
            if magic != b"KG":  # what was on its way before the greeting
                self.data = self.data[1:]
                continue
            if len(self.data) < 16 + size:
                return
            self.take(kind, flags, channel, self.data[16:16 + size])
            self.data = self.data[16 + size:]

    def take(self, kind, flags, channel, body):
        if kind == HELLO_ACK:
            self.greeted = fields(body).get(NONCE) == self.nonce
        elif not self.greeted or channel not in self.out:
            return
        elif kind == DATA and not flags & FLAG_STDERR:
            self.out[channel] += body
        elif kind == EXIT:
            self.ends[channel] = struct.unpack("<Q", fields(body)[CODE])[0]
        elif kind == ERROR:
            raise ConnectionError("the guest refused: " + fields(body)[TEXT].decode())

    def line(self, channel):
        """Blocks for a line of a program's output."""
        while not self.out[channel].endswith(b"\n"):
            if channel in self.ends and not self.out[channel]:
                raise ConnectionError(f"the program ended with {self.ends[channel]} and said nothing")
            self.pump()
        return self.out[channel]

    def ask(self, argv):
        return self.line(self.exec(argv)).decode()

    def echo(self):
        return Echo(self, self.exec(["@cat"]))

    def close(self):
        self.sock.close()


class Echo:
    """A running @cat, as a Watcher asks it."""

    def __init__(self, session, channel):
        self.session, self.channel = session, channel

    def fileno(self):
        return self.session.sock.fileno()

    def send(self, data):
        self.session.sock.sendall(frame(DATA, self.channel, data))

    def receive(self):
        self.session.pump()
        out, self.session.out[self.channel] = self.session.out[self.channel], b""
        return out


def connect(path, seconds=10):
    end = time.monotonic() + seconds
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(path)
            sock.settimeout(60)
            return sock
        except OSError:
            sock.close()
            if time.monotonic() > end:
                raise
            time.sleep(0.0005)
