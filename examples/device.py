#!/usr/bin/env python3
"""A device for tidegate, to copy from. Python 3.8 or later, standard library only.

Takes a reading each --interval seconds and sends it over TCP or a serial line, as
docs/protocol.md describes, with JSON bodies. Each reading is kept until the gateway
has acknowledged it, over any number of connections; with --state also over restarts
of this program. Exits with 0 once --count readings are acknowledged.

    device.py --tcp 127.0.0.1:7411 --device pump-7
    device.py --serial /dev/ttyUSB0 --device pump-7 --interval 0.5 --count 100
    device.py --tcp gateway:7411 --device pump-7 --key pumps --secret-file pumps.secret

The last is for gateways on a network, which ask who it is: there, `tidegate key new pumps
--device 'pump-*' > pumps.secret` makes the key.
"""

import argparse
import base64
import collections
import hmac
import json
import math
import os
import random
import select
import socket
import struct
import sys
import termios
import time
import zlib

MAGIC = b"\x12\x34\x56\x7f"
HEADER = struct.Struct(">4sBBI")  # magic, version, type, length of the body
JSON = 0x10  # bits 6-4 of the type: the body's encoding

# Types without the bits for the encoding.
HELLO, AUTHENTICATE, READINGS, HEARTBEAT, GOODBYE = 0x01, 0x02, 0x03, 0x04, 0x06
CHALLENGE, WELCOME, ACK, GATEWAY_GOODBYE, REFUSED = 0x81, 0x82, 0x83, 0x86, 0x88

MAX_BODY = 65536  # the largest body that this device takes from the gateway
MAX_KEPT = 10_000  # readings kept at most
MAX_BATCH = 100  # readings in one message at most
SAMPLE_BYTES = 120  # a reading's JSON is shorter than this
ANSWER_WITHIN = 5.0  # seconds for Welcome to answer Hello, and on serial for an Ack
RESEND_AFTER = 1.0  # serial: seconds without an Ack after which readings are sent again
FRAME_TIMEOUT = 0.5  # serial: a frame that began and does not go on is given up


class SessionOver(Exception):
    """The session ended and must be started again."""


# --- frames -----------------------------------------------------------------------


def frame(version, kind, body):
    """One message as bytes."""
    body = json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()
    data = HEADER.pack(MAGIC, version, kind | JSON, len(body)) + body
    return data if version == 1 else data + struct.pack(">I", zlib.crc32(data))


class FrameReader:
    """Finds frames in the bytes that arrive."""

    def __init__(self, resync):
        self.resync = resync  # on a serial line: skip what is no frame
        self.buffer = bytearray()
        self.last_byte = 0.0

    def feed(self, data):
        self.buffer += data
        self.last_byte = time.monotonic()

    def skip(self):
        """Goes on at the next magic, never behind a length that may be wrong."""
        at = self.buffer.find(MAGIC[0], 1)
        del self.buffer[: at if at > 0 else len(self.buffer)]

    def size(self):
        """How large the frame is that the buffer begins with, as far as that can be told;
        0 if it begins with none."""
        known = min(len(self.buffer), len(MAGIC))
        if self.buffer[:known] != MAGIC[:known]:
            return 0
        if len(self.buffer) < HEADER.size:
            return HEADER.size
        _, version, _, length = HEADER.unpack_from(self.buffer)
        if version not in (1, 2) or length > MAX_BODY:
            return 0
        return HEADER.size + length + (4 if version == 2 else 0)

    def next(self):
        """The next message as (type without encoding, body), or None."""
        # Serial: the rest of a frame that is not coming must hide no other.
        ended = self.resync and time.monotonic() - self.last_byte > FRAME_TIMEOUT
        while self.buffer:
            size = self.size()
            if size > len(self.buffer) and not ended:
                return None
            if 0 < size <= len(self.buffer):
                data = bytes(self.buffer[:size])
                _, version, kind, length = HEADER.unpack_from(data)
                end = HEADER.size + length
                if version == 1 or zlib.crc32(data[:end]) == struct.unpack(">I", data[end:])[0]:
                    del self.buffer[:size]
                    return kind & 0x8F, self.decode(kind, data[HEADER.size : end])
            if not self.resync:
                raise SessionOver("the gateway sent what is no frame")
            self.skip()
        return None

    @staticmethod
    def decode(kind, body):
        """The body, or {} if it cannot be read: a Goodbye counts in any encoding."""
        try:
            decoded = json.loads(body) if kind & 0x70 == JSON else {}
        except ValueError:
            decoded = {}
        return decoded if isinstance(decoded, dict) else {}


# --- links: something with a file descriptor that does not block --------------------


class Tcp:
    serial = False

    def __init__(self, address):
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host.strip("[]"), int(port)), timeout=5)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.fd = self.socket.fileno()

    def close(self):
        self.socket.close()


class Serial:
    serial = True

    def __init__(self, path, baud):
        self.fd = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        speed = getattr(termios, "B%d" % baud)
        iflag, oflag, cflag, lflag, _, _, cc = termios.tcgetattr(self.fd)
        # Raw bytes, 8 data bits, no parity, 1 stop bit, no flow control.
        iflag = oflag = lflag = 0
        cflag &= ~(termios.CSIZE | termios.PARENB | termios.CSTOPB | termios.CRTSCTS)
        cflag |= termios.CS8 | termios.CREAD | termios.CLOCAL
        cc[termios.VMIN], cc[termios.VTIME] = 1, 0
        termios.tcsetattr(self.fd, termios.TCSANOW, [iflag, oflag, cflag, lflag, speed, speed, cc])
        termios.tcflush(self.fd, termios.TCIFLUSH)

    def close(self):
        os.close(self.fd)


# --- readings -----------------------------------------------------------------------


def measure(seq):
    """Put your sensor here. In JSON a float needs a fraction: 21.0, not 21."""
    return {"temperature": round(20 + 5 * math.sin(seq / 60), 2), "count": seq}


class Readings:
    """Takes readings and keeps each until it is acknowledged."""

    def __init__(self, count, interval, state):
        self.left = count
        self.interval = interval
        self.due = time.monotonic()
        self.state = state
        # A numbering of its own, unless the last one goes on.
        self.session = random.SystemRandom().getrandbits(53)
        self.next_seq = 1
        self.kept = collections.deque()  # (seq, sample), oldest first
        self.saved = True
        if state and os.path.exists(state):
            with open(state) as file:
                old = json.load(file)
            self.session, self.next_seq = old["session"], old["next_seq"]
            self.kept.extend((seq, sample) for seq, sample in old["kept"])

    def take_due(self):
        """Takes what is due. When the memory is full this device pauses; another might
        rather give up its oldest readings, and say Hello again to tell."""
        while self.left > 0 and len(self.kept) < MAX_KEPT and time.monotonic() >= self.due:
            sample = {"time": time.time_ns() // 1000, "values": measure(self.next_seq)}
            self.kept.append((self.next_seq, sample))
            self.next_seq += 1
            self.left -= 1
            self.due += self.interval
            self.saved = False

    def wait(self):
        """Seconds until there is something to take, one tenth at most."""
        if self.left == 0 or len(self.kept) >= MAX_KEPT:
            return 0.1
        return max(0.0, min(0.1, self.due - time.monotonic()))

    def forget(self, settled):
        """The gateway has everything up to here. Returns whether that is news."""
        before = len(self.kept)
        while self.kept and self.kept[0][0] <= settled:
            self.kept.popleft()
            self.saved = False
        return len(self.kept) < before

    def save(self):
        """Before anything is sent: a seq must never come to mean another sample."""
        if self.saved or not self.state:
            return
        temporary = self.state + ".new"
        with open(temporary, "w") as file:
            json.dump({"session": self.session, "next_seq": self.next_seq, "kept": list(self.kept)}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.state)
        self.saved = True

    def restart_numbering(self):
        """Another numbering has used this session id: take a new one."""
        self.session = random.SystemRandom().getrandbits(53)
        self.kept = collections.deque((seq, sample) for seq, (_, sample) in enumerate(self.kept, 1))
        self.next_seq = len(self.kept) + 1
        self.saved = False

    def after(self, seq, most):
        """Up to `most` readings that stand after `seq`, without a gap between them."""
        batch = []
        if self.kept and seq < self.kept[-1][0]:
            start = max(0, seq + 1 - self.kept[0][0])  # this device never leaves a gap
            for i in range(start, min(start + most, len(self.kept))):
                batch.append(self.kept[i])
        return batch

    def done(self):
        return self.left == 0 and not self.kept


# --- the session --------------------------------------------------------------------


class Session:
    """From Hello to Goodbye."""

    def __init__(self, link, args, readings, on_ack):
        self.link, self.args, self.readings, self.on_ack = link, args, readings, on_ack
        self.reader = FrameReader(resync=link.serial)
        self.out = bytearray()
        self.welcome = None
        self.sent = 0  # the last seq that was sent
        self.acked = 0  # the last seq that was acknowledged
        self.highest = 0  # the last seq that was ever sent
        self.batch = MAX_BATCH  # serial: readings in one message at most, for now
        self.resend_at = 0.0
        self.last_sent = self.last_heard = self.progress = time.monotonic()

    def run(self):
        """Returns once everything is acknowledged."""
        if self.link.serial:
            termios.tcflush(self.link.fd, termios.TCIFLUSH)  # what is still there is not for this session
        hello = {"device": self.args.device, "session": self.readings.session, "clock": "wall"}
        hello["first"] = self.readings.kept[0][0] if self.readings.kept else self.readings.next_seq
        self.send(HELLO, dict(hello, time=time.time_ns() // 1000, firmware="device.py 1"))
        while True:
            self.readings.take_due()
            self.readings.save()
            if self.welcome:
                if self.readings.done():
                    self.send(GOODBYE, {"reason": "normal", "text": ""})
                    self.flush()
                    return
                self.send_readings()
            self.check_time()
            self.exchange(self.readings.wait())
            message = self.reader.next()
            while message:
                self.handle(*message)
                message = self.reader.next()

    def proof(self, nonce):
        """That this device has the key, for this Hello and nothing else."""
        session = struct.pack(">Q", self.readings.session)
        said = b"tidegate-hmac-v1\0" + nonce + self.args.device.encode() + b"\0" + session
        return base64.b64encode(hmac.digest(self.args.secret, said, "sha256")).decode()

    def send(self, kind, body):
        self.out += frame(self.args.version, kind, body)
        self.last_sent = time.monotonic()

    def send_readings(self):
        if self.link.serial:
            # A frame may be lost, and what follows it is refused: one at a time.
            window = 0 if self.sent > self.acked else min(self.batch, self.welcome["window"])
        else:
            window = self.welcome["window"] - (self.sent - self.acked)
        most = min(MAX_BATCH, max(1, (self.welcome["max_frame"] - 100) // SAMPLE_BYTES))
        # `out` is kept short: what waits in it cannot be taken back.
        while window > 0 and len(self.out) < 65536:
            batch = self.readings.after(self.sent, min(most, window))
            if not batch:
                return
            if self.sent == self.acked:
                self.resend_at = time.monotonic() + RESEND_AFTER
                if batch[-1][0] > self.highest:
                    self.progress = time.monotonic()
            self.send(READINGS, {"seq": batch[0][0], "samples": [sample for _, sample in batch]})
            self.sent = batch[-1][0]
            self.highest = max(self.highest, self.sent)
            window = 0 if self.link.serial else window - len(batch)

    def check_time(self):
        now = time.monotonic()
        if not self.welcome:
            if now - self.last_sent > ANSWER_WITHIN:
                raise SessionOver("no Welcome came")
            return
        interval = self.welcome["heartbeat_interval"]
        if now - self.last_sent > interval * 0.8:
            self.send(HEARTBEAT, {"time": time.time_ns() // 1000})
        if now - self.last_heard > interval * 2:
            raise SessionOver("the gateway is silent")
        if self.link.serial and self.sent > self.acked and now - self.progress > ANSWER_WITHIN:
            raise SessionOver("no Ack came: Readings or Ack were lost")
        if self.link.serial and self.sent > self.acked and now > self.resend_at:
            # They are sent again, in smaller messages: noise hits those less often.
            self.sent = self.acked
            self.batch = max(1, self.batch // 2)

    def exchange(self, timeout):
        """Writes and reads what is possible now, or waits up to `timeout` for it."""
        readable, writable, _ = select.select([self.link.fd], [self.link.fd] if self.out else [], [], timeout)
        if writable:
            del self.out[: os.write(self.link.fd, self.out)]
        if readable:
            data = os.read(self.link.fd, 65536)
            if not data:
                raise ConnectionError("the connection was closed")
            self.reader.feed(data)

    def flush(self):
        until = time.monotonic() + ANSWER_WITHIN
        while self.out and time.monotonic() < until:
            self.exchange(0.1)
        if self.link.serial:
            termios.tcdrain(self.link.fd)

    def handle(self, kind, body):
        if kind < 0x80:
            return  # what this device said, on a line that brings it back
        if kind == GATEWAY_GOODBYE:
            raise SessionOver("the gateway said Goodbye: %s %s" % (body.get("reason"), body.get("text")))
        if kind == CHALLENGE:
            if not self.args.key:
                raise SessionOver("the gateway asks for a key: give --key and --secret-file")
            self.send(AUTHENTICATE, {"key": self.args.key, "proof": self.proof(base64.b64decode(body["nonce"]))})
        if kind == WELCOME:
            if body.get("session", self.readings.session) != self.readings.session:
                return  # it answers the Hello of an earlier life, over a serial line
            self.last_heard = time.monotonic()
            self.welcome = body
            settled = body["settled"]
            if settled >= self.readings.next_seq:
                self.readings.restart_numbering()
                raise SessionOver("the session id was used before")
            # Everything after this is sent again, as far as it is kept.
            self.sent = self.acked = max(settled, self.readings.kept[0][0] - 1 if self.readings.kept else 0)
            if self.readings.forget(settled):
                self.on_ack(settled)
        elif self.welcome:  # what comes before it belongs to an earlier session
            self.last_heard = time.monotonic()
            if kind == ACK:
                self.acked = max(self.acked, body["seq"])
                self.sent = max(self.sent, self.acked)
                self.batch = min(self.batch + 1, MAX_BATCH)
                self.progress = time.monotonic()
                if self.readings.forget(self.acked):
                    self.on_ack(self.acked)
            if kind == REFUSED:
                print("refused from %d on, %d readings: %s" % (body["seq"], body["count"], body["text"]), flush=True)
            # A HeartbeatReply needs no more than being heard; what is unknown is ignored.


def arguments():
    parser = argparse.ArgumentParser(description="A device for tidegate.")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--tcp", metavar="HOST:PORT")
    where.add_argument("--serial", metavar="PATH")
    parser.add_argument("--baud", type=int, default=115200)
    parser.add_argument("--device", default="example-py", help="this device's name")
    parser.add_argument("--count", type=int, default=10, help="readings to take")
    parser.add_argument("--interval", type=float, default=1.0, help="seconds between readings")
    parser.add_argument("--version", type=int, choices=(1, 2), default=2, help="frames without or with checksum")
    parser.add_argument("--key", metavar="NAME", help="the key that `tidegate key new NAME` made for this device")
    parser.add_argument("--secret-file", metavar="FILE", help="where its secret is, as 64 hexadecimal digits")
    parser.add_argument("--state", metavar="FILE", help="keep readings and numbering here over restarts")
    args = parser.parse_args()
    if bool(args.key) != bool(args.secret_file):
        parser.error("--key and --secret-file go together")
    if args.key:
        with open(args.secret_file) as file:
            args.secret = bytes.fromhex(file.read().strip())
    return args


def main():
    args = arguments()
    readings = Readings(args.count, args.interval, args.state)
    link = None
    delay = 1.0

    def on_ack(seq):
        nonlocal delay
        delay = 1.0
        print("acked up to %d, %d kept" % (seq, len(readings.kept)), flush=True)

    while not readings.done():
        try:
            if link is None:
                link = Serial(args.serial, args.baud) if args.serial else Tcp(args.tcp)
            Session(link, args, readings, on_ack).run()
            break
        except (OSError, SessionOver, KeyError) as why:  # KeyError: a field is missing
            print("device.py: %s" % (why or type(why).__name__), file=sys.stderr, flush=True)
            # A serial port stays open as long as it works: only the session is new.
            if link and (isinstance(why, OSError) or not link.serial):
                link.close()
                link = None
        # Wait, with a different length for each device, and go on measuring.
        until = time.monotonic() + delay * random.uniform(0.5, 1.5)
        if not args.serial:  # where no crowd would come back at once
            delay = min(delay * 2, 60.0)
        while time.monotonic() < until:
            readings.take_due()
            readings.save()
            time.sleep(min(0.1, max(readings.wait(), 0.001)))
    if link:
        link.close()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
