#!/usr/bin/env python3
"""A device for tidegate that speaks Protobuf, with the official package.

Debian has it as python3-protobuf, and the compiler for the messages as protobuf-compiler:

    protoc -I proto --python_out=. proto/tidegate.proto     # makes tidegate_pb2.py
    PYTHONPATH=. examples/protobuf.py --tcp 127.0.0.1:7411 --device pump-7

Takes a reading each --interval seconds and keeps it until the gateway has acknowledged
it, over any number of connections. Exits with 0 once --count readings are acknowledged.
device.py, which speaks JSON, shows more: serial lines, keeping readings over restarts, and
how to prove who it is. This one cannot, and gateways ask for that on a network: there, give
the [[tcp]] that it connects to `authentication = "none"` while you try it.
"""

import argparse
import collections
import math
import random
import select
import socket
import struct
import sys
import time
import zlib

from google.protobuf.message import DecodeError
import tidegate_pb2 as pb

MAGIC = 0x1234567F
HEADER = struct.Struct(">IBBI")  # magic, version, type, length of the body
# Types of frames with bodies in Protobuf.
KIND = {pb.Hello: 0x21, pb.Readings: 0x23, pb.Heartbeat: 0x24, pb.Goodbye: 0x26}
MESSAGE = {0xA1: pb.Challenge, 0xA2: pb.Welcome, 0xA3: pb.Ack, 0xA4: pb.HeartbeatReply, 0xA6: pb.Goodbye}

MAX_BODY = 65536  # the largest body that this device takes from the gateway
MAX_KEPT = 10_000  # readings kept at most
MAX_BATCH = 100  # readings in one message at most
PATIENCE = 5.0  # seconds for a Welcome, for the rest of a frame, and for a write


class SessionOver(Exception):
    """The session ended and must be started again."""


def now():
    """Wall-clock time in microseconds."""
    return time.time_ns() // 1000


def send(sock, message):
    body = message.SerializeToString()
    data = HEADER.pack(MAGIC, 2, KIND[type(message)], len(body)) + body
    sock.sendall(data + struct.pack(">I", zlib.crc32(data)))


def receive(sock):
    """The next message; None if it is one that this device does not know."""
    header = receive_bytes(sock, HEADER.size)
    magic, version, kind, length = HEADER.unpack(header)
    if magic != MAGIC or version != 2 or length > MAX_BODY:
        raise SessionOver("the gateway sent what is no frame")
    body = receive_bytes(sock, length)
    if receive_bytes(sock, 4) != struct.pack(">I", zlib.crc32(header + body)):
        raise SessionOver("the gateway sent a frame with a wrong checksum")
    if kind & 0x8F == 0x86 and kind != 0xA6:  # a Goodbye counts in any encoding
        raise SessionOver("the gateway said Goodbye")
    message = MESSAGE.get(kind)
    return message and message.FromString(body)


def receive_bytes(sock, count):
    data = b""
    while len(data) < count:
        more = sock.recv(count - len(data))
        if not more:
            raise ConnectionError("the connection was closed")
        data += more
    return data


def sample(seq):
    """Put your sensor here."""
    taken = pb.Sample(time=now())
    taken.values.add(name="temperature", float_value=round(20 + 5 * math.sin(seq / 60), 2))
    taken.values.add(name="count", integer_value=seq)
    return taken


class Device:
    def __init__(self, args):
        self.args = args
        # The numbering begins anew each time this program starts. Not 0: in Protobuf that
        # is as if it were not set.
        self.session = random.SystemRandom().randrange(1, 1 << 64)
        self.kept = collections.deque()  # the samples after `settled`, oldest first
        self.settled = 0  # the last seq that was acknowledged
        self.taken = 0  # the last seq that was taken
        self.due = time.monotonic()

    def take_due(self):
        while self.taken < self.args.count and len(self.kept) < MAX_KEPT and time.monotonic() >= self.due:
            self.taken += 1
            self.kept.append(sample(self.taken))
            self.due += self.args.interval

    def done(self):
        return self.settled == self.args.count

    def settle(self, seq):
        if seq > self.taken:
            raise SystemExit("another device uses this name and session id")
        while self.settled < seq:
            self.kept.popleft()
            self.settled += 1
        print("acked up to %d, %d kept" % (self.settled, len(self.kept)), flush=True)

    def run(self, sock):
        """One session. Returns once everything is acknowledged."""
        send(sock, pb.Hello(device=self.args.device, session=self.session, clock=pb.CLOCK_WALL, time=now(),
                            firmware="protobuf.py 1", first=self.settled + 1, max_frame=MAX_BODY))
        welcome = receive(sock)
        if isinstance(welcome, pb.Challenge):
            raise SessionOver("the gateway asks for a key, which this example cannot prove: device.py can")
        if isinstance(welcome, pb.Goodbye):
            raise SessionOver("the gateway said Goodbye: %s" % welcome.text)
        if not isinstance(welcome, pb.Welcome):
            raise SessionOver("no Welcome came")
        self.settle(max(self.settled, welcome.settled))
        sent = self.settled
        heard = said = time.monotonic()
        while not self.done():
            self.take_due()
            most = min(MAX_BATCH, welcome.window - (sent - self.settled))
            first = sent - self.settled  # where in `kept` what is not sent begins
            batch = [self.kept[i] for i in range(first, min(first + most, len(self.kept)))]
            if batch:
                send(sock, pb.Readings(seq=sent + 1, samples=batch))
                sent += len(batch)
                said = time.monotonic()
            elif time.monotonic() - said > welcome.heartbeat_interval * 0.8:
                send(sock, pb.Heartbeat(time=now()))
                said = time.monotonic()
            if select.select([sock], [], [], 0 if batch else 0.01)[0]:
                message = receive(sock)
                heard = time.monotonic()
                if isinstance(message, pb.Goodbye):
                    raise SessionOver("the gateway said Goodbye: %s" % message.text)
                if isinstance(message, pb.Ack) and self.settled < message.seq <= sent:
                    self.settle(message.seq)
            if time.monotonic() - heard > welcome.heartbeat_interval * 2:
                raise SessionOver("the gateway is silent")
        send(sock, pb.Goodbye(reason=pb.REASON_NORMAL))


def main():
    parser = argparse.ArgumentParser(description="A device for tidegate that speaks Protobuf.")
    parser.add_argument("--tcp", metavar="HOST:PORT", required=True)
    parser.add_argument("--device", default="example-protobuf-py", help="this device's name")
    parser.add_argument("--count", type=int, default=10, help="readings to take")
    parser.add_argument("--interval", type=float, default=1.0, help="seconds between readings")
    args = parser.parse_args()
    host, _, port = args.tcp.rpartition(":")
    device = Device(args)
    delay = 1.0
    while not device.done():
        before = device.settled
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE) as sock:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                device.run(sock)
                return
        except (OSError, SessionOver, DecodeError) as why:
            print("protobuf.py: %s" % why, file=sys.stderr, flush=True)
        # Wait, with a different length for each device, and go on measuring.
        delay = 1.0 if device.settled > before else delay
        until = time.monotonic() + delay * random.uniform(0.5, 1.5)
        delay = min(delay * 2, 60.0)
        while time.monotonic() < until:
            device.take_due()
            time.sleep(0.01)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
