"""A call between two clients of one TURN server, until SIGTERM: then it tells what was sent and what has arrived."""

import hashlib
import hmac
import os
import select
import signal
import socket
import struct
import sys
import time

COOKIE = 0x2112A442
ALLOCATE, REFRESH, SEND, PERMISSION = 0x003, 0x004, 0x016, 0x008


def attribute(kind, value):
    return struct.pack(">HH", kind, len(value)) + value + bytes(-len(value) % 4)


def address(ip, port):
    number, = struct.unpack(">I", socket.inet_aton(ip))
    return struct.pack(">BBHI", 0, 1, port ^ (COOKIE >> 16), number ^ COOKIE)


def attributes(message):
    found, at = {}, 20
    while at < len(message):
        kind, length = struct.unpack_from(">HH", message, at)
        found.setdefault(kind, message[at + 4 : at + 4 + length])
        at += 4 + length + -length % 4
    return found


class Client:
    def __init__(self, server, user, password):
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.connect(server)
        self.user, self.password, self.nonce = user, password, None

    def request(self, method, *parts):
        for _ in range(3):
            id, body = os.urandom(12), b"".join(parts)
            if self.nonce:
                body += attribute(0x0006, self.user) + attribute(0x0014, self.realm) + attribute(0x0015, self.nonce)
                key = hashlib.md5(self.user + b":" + self.realm + b":" + self.password).digest()
                header = struct.pack(">HHI", method, len(body) + 24, COOKIE) + id
                body += attribute(0x0008, hmac.new(key, header + body, hashlib.sha1).digest())
            self.socket.send(struct.pack(">HHI", method, len(body), COOKIE) + id + body)
            while True:
                if not select.select([self.socket], [], [], 5)[0]:
                    sys.exit(f"no answer to {method:#x}")
                answer = self.socket.recv(65536)
                if answer[8:20] == id:
                    break
            found, kind = attributes(answer), struct.unpack(">H", answer[:2])[0]
            if kind == method | 0x100:
                return found
            code = found[0x0009][2] * 100 + found[0x0009][3]
            if code not in (401, 438) or 0x0015 not in found:
                break
            self.realm, self.nonce = found.get(0x0014, getattr(self, "realm", b"")), found[0x0015]
        sys.exit(f"{method:#x} is answered with {code}")

    def allocate(self):
        relayed = self.request(ALLOCATE, attribute(0x0019, bytes([17, 0, 0, 0])))[0x0016]
        _, _, port, number = struct.unpack(">BBHI", relayed)
        return socket.inet_ntoa(struct.pack(">I", number ^ COOKIE)), port ^ (COOKIE >> 16)

    def send(self, peer, data):
        body = attribute(0x0012, address(*peer)) + attribute(0x0013, data)
        self.socket.send(struct.pack(">HHI", SEND, len(body), COOKIE) + os.urandom(12) + body)


ended = []
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda *_: ended.append(True))
server, user, password = (sys.argv[1], int(sys.argv[2])), sys.argv[3].encode(), sys.argv[4].encode()
one, other = Client(server, user, password), Client(server, user, password)
ends = one.allocate(), other.allocate()
one.request(PERMISSION, attribute(0x0012, address(*ends[1])))
other.request(PERMISSION, attribute(0x0012, address(*ends[0])))
print("begun", flush=True)
sent, received, until = 0, set(), time.monotonic() + 600


def hear(patience):
    """Takes what comes until then; a packet may be late, but none may be missing."""
    until = time.monotonic() + patience
    while (left := until - time.monotonic()) > 0 and len(received) < sent:
        if select.select([other.socket], [], [], left)[0]:
            try:
                message = other.socket.recv(65536)
                received.add(attributes(message)[0x0013])
            except ConnectionRefusedError:
                pass


while not ended and time.monotonic() < until:
    try:
        one.send(ends[1], b"%08d" % sent)
    except ConnectionRefusedError:
        pass
    sent += 1
    # 50 packets a second, as calls have.
    pause = time.monotonic() + 0.02
    hear(0.02)
    time.sleep(max(0, pause - time.monotonic()))
hear(5)
print(f"sent {sent} received {len(received)}", flush=True)
sys.exit(sent != len(received))
