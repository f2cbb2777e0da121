"""A small TURN client over UDP, for cases that look at single packets (RFC 8656).

Its sockets live in a namespace, its code does not: a socket stays in the namespace that it was made in.
"""

import contextlib
import ctypes
import hashlib
import hmac
import ipaddress
import os
import socket
import struct
import zlib
from collections.abc import Iterator

from .credentials import REALM, Credential
from .stun import HEADER, MAGIC_COOKIE

SEND_INDICATION, DATA_INDICATION = 0x0016, 0x0017
ALLOCATE, REFRESH, CREATE_PERMISSION, CHANNEL_BIND = 0x0003, 0x0004, 0x0008, 0x0009
SUCCESS, ERROR = 0x0100, 0x0110
USERNAME, INTEGRITY, ERROR_CODE, CHANNEL_NUMBER, LIFETIME = 0x0006, 0x0008, 0x0009, 0x000C, 0x000D
PEER_ADDRESS, REALM_NAME, NONCE, RELAYED_ADDRESS = 0x0012, 0x0014, 0x0015, 0x0016
ADDRESS_FAMILY, REQUESTED_TRANSPORT = 0x0017, 0x0019
DATA, FINGERPRINT, FINGERPRINT_MASK = 0x0013, 0x8028, 0x5354554E
CLONE_NEWNET = 0x40000000
# A retransmission after this; answers take milliseconds.
ANSWER_SECONDS = 1
ATTEMPTS = 5

Address = tuple[str, int]


@contextlib.contextmanager
def inside(namespace: str) -> Iterator[None]:
    """Has this thread make sockets in a namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/thread-self/ns/net") as before, open(f"/run/netns/{namespace}") as within:
        for file in (within, before):
            if libc.setns(file.fileno(), CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), f"setns to {file.name}")
            if file is within:
                try:
                    yield
                except BaseException:
                    libc.setns(before.fileno(), CLONE_NEWNET)
                    raise


def udp_socket(namespace: str, address: str, port: int = 0) -> socket.socket:
    """A socket of a namespace, bound to an address of it, that gives up receiving after a while."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with inside(namespace):
        made = socket.socket(family, socket.SOCK_DGRAM)
    made.bind((address, port))
    made.settimeout(ANSWER_SECONDS)
    return made


class Refused(RuntimeError):
    """An error response; `code` is its number."""

    def __init__(self, code: int):
        super().__init__(f"refused with {code}")
        self.code = code


class Client:
    """An allocation of a client at `local` in a namespace."""

    def __init__(self, namespace: str, local: str, server: Address, credential: Credential, family: int = 4):
        self.socket = udp_socket(namespace, local)
        self.server = server
        self.credential = credential
        self.nonce = b""
        wanted = [(REQUESTED_TRANSPORT, bytes([socket.IPPROTO_UDP, 0, 0, 0])),
                  (ADDRESS_FAMILY, bytes([1 if family == 4 else 2, 0, 0, 0]))]
        try:
            self.ask(ALLOCATE, wanted)
        except Refused as refused:
            if refused.code != 401:
                raise
        answer = self.ask(ALLOCATE, wanted)
        self.relayed = read_address(answer[RELAYED_ADDRESS], answer["id"])

    def bind(self, channel: int, peer: Address) -> None:
        """Binds a channel, or refreshes it."""
        number = struct.pack("!HH", channel, 0)
        self.ask(CHANNEL_BIND, [(CHANNEL_NUMBER, number), (PEER_ADDRESS, peer)])

    def permit(self, peer: Address) -> None:
        self.ask(CREATE_PERMISSION, [(PEER_ADDRESS, peer)])

    def refresh(self, lifetime: int | None = None) -> None:
        """Refreshes the allocation; a lifetime of 0 ends it."""
        self.ask(REFRESH, [] if lifetime is None else [(LIFETIME, struct.pack("!I", lifetime))])

    def send(self, channel: int, data: bytes) -> None:
        self.socket.sendto(struct.pack("!HH", channel, len(data)) + data, self.server)

    def receive(self) -> tuple[int, bytes]:
        """The next ChannelData: its channel and its data."""
        message = self.socket.recv(65536)
        channel, size = struct.unpack_from("!HH", message)
        if len(message) != 4 + size:
            raise AssertionError(f"{size} bytes of data in a message of {len(message)}")
        return channel, message[4:]

    def indicate(self, peer: Address, data: bytes, fingerprint: bool) -> None:
        """A Send indication, as Firefox writes it with a FINGERPRINT and Chromium without."""
        transaction = os.urandom(12)
        body = attribute(PEER_ADDRESS, write_address(peer, transaction)) + attribute(DATA, data)
        message = HEADER.pack(SEND_INDICATION, len(body) + 8 * fingerprint, MAGIC_COOKIE, transaction) + body
        if fingerprint:
            message += attribute(FINGERPRINT, struct.pack("!I", zlib.crc32(message) ^ FINGERPRINT_MASK))
        self.socket.sendto(message, self.server)

    def receive_indication(self) -> tuple[Address, bytes]:
        """The next Data indication: its peer and its data."""
        message = self.socket.recv(65536)
        kind, size, cookie, transaction = HEADER.unpack_from(message)
        if (kind, size, cookie) != (DATA_INDICATION, len(message) - HEADER.size, MAGIC_COOKIE):
            raise AssertionError(f"a message of {len(message)} bytes begins with {message[:HEADER.size].hex()}")
        found = read_attributes(message[HEADER.size :])
        if list(found) != [PEER_ADDRESS, DATA]:
            raise AssertionError(f"a Data indication with the attributes {list(found)}")
        return read_address(found[PEER_ADDRESS], transaction), found[DATA]

    def close(self) -> None:
        self.socket.close()

    def ask(self, method: int, attributes: list) -> dict:
        """Sends a request until it is answered; returns the attributes of a success."""
        transaction = os.urandom(12)
        request = self.request(method, attributes, transaction)
        for _ in range(ATTEMPTS):
            self.socket.sendto(request, self.server)
            try:
                answer = self.answer(transaction)
            except TimeoutError:
                continue
            if NONCE in answer:
                self.nonce = answer[NONCE]
            if answer["kind"] == method | SUCCESS:
                return answer
            code = answer[ERROR_CODE][2] * 100 + answer[ERROR_CODE][3]
            raise Refused(code)
        raise TimeoutError(f"no answer to a request of method {method}")

    def answer(self, transaction: bytes) -> dict:
        """The attributes of the answer to a request; whatever else comes is skipped."""
        while True:
            message = self.socket.recv(65536)
            if len(message) < HEADER.size:
                continue
            kind, _, cookie, echoed = HEADER.unpack_from(message)
            if cookie == MAGIC_COOKIE and echoed == transaction:
                return {"kind": kind, "id": transaction, **read_attributes(message[HEADER.size :])}

    def request(self, method: int, attributes: list, transaction: bytes) -> bytes:
        body = b""
        for kind, value in attributes:
            body += attribute(kind, write_address(value, transaction) if isinstance(value, tuple) else value)
        if self.nonce:
            name, realm = self.credential.username.encode(), REALM.encode()
            body += attribute(USERNAME, name) + attribute(REALM_NAME, realm) + attribute(NONCE, self.nonce)
            key = hashlib.md5(b":".join([name, realm, self.credential.password.encode()])).digest()
            signed = HEADER.pack(method, len(body) + 24, MAGIC_COOKIE, transaction) + body
            body += attribute(INTEGRITY, hmac.digest(key, signed, "sha1"))
        return HEADER.pack(method, len(body), MAGIC_COOKIE, transaction) + body


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("!HH", kind, len(value)) + value + bytes(-len(value) % 4)


def read_attributes(body: bytes) -> dict[int, bytes]:
    found, offset = {}, 0
    while offset + 4 <= len(body):
        kind, size = struct.unpack_from("!HH", body, offset)
        found[kind] = body[offset + 4 : offset + 4 + size]
        offset += 4 + (size + 3) // 4 * 4
    return found


def xor_key(transaction: bytes) -> bytes:
    return struct.pack("!I", MAGIC_COOKIE) + transaction


def write_address(address: Address, transaction: bytes) -> bytes:
    ip = ipaddress.ip_address(address[0])
    host = bytes(a ^ b for a, b in zip(ip.packed, xor_key(transaction)))
    return struct.pack("!HH", 1 if ip.version == 4 else 2, address[1] ^ MAGIC_COOKIE >> 16) + host


def read_address(value: bytes, transaction: bytes) -> Address:
    port = struct.unpack_from("!H", value, 2)[0] ^ MAGIC_COOKIE >> 16
    host = bytes(a ^ b for a, b in zip(value[4:], xor_key(transaction)))
    return str(ipaddress.ip_address(host)), port
