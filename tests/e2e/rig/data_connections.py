"""TCP allocations (RFC 6062) with the standard library alone: a client, and a peer that echoes.

Run as a program inside a namespace:
    data_connections.py peer PORT
    data_connections.py client SERVER PORT TLS_PORT USERNAME PASSWORD PEER PEER_PORT
The client connects to the peer and is connected to by it, over plain and TLS data connections; it prints what it saw.
"""

import hashlib
import hmac
import ipaddress
import os
import socket
import ssl
import struct
import sys
import threading

MAGIC_COOKIE = 0x2112A442
HEADER = struct.Struct("!HHI12s")
ALLOCATE, CREATE_PERMISSION, CONNECT, CONNECTION_BIND, ATTEMPT = 0x003, 0x008, 0x00A, 0x00B, 0x001C
SUCCESS, ERROR = 0x100, 0x110
USERNAME, INTEGRITY, ERROR_CODE, PEER_ADDRESS = 0x0006, 0x0008, 0x0009, 0x0012
REALM, NONCE, RELAYED_ADDRESS, TRANSPORT, CONNECTION_ID = 0x0014, 0x0015, 0x0016, 0x0019, 0x002A
SECONDS = 20
PIECES, PIECE_BYTES = 50, 20_000


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("!HH", kind, len(value)) + value + bytes(-len(value) % 4)


def xor_address(address: tuple[str, int]) -> bytes:
    ip = int(ipaddress.IPv4Address(address[0])) ^ MAGIC_COOKIE
    return struct.pack("!BBHI", 0, 1, address[1] ^ MAGIC_COOKIE >> 16, ip)


def address_of(value: bytes) -> tuple[str, int]:
    _, family, port, ip = struct.unpack("!BBHI", value)
    assert family == 1
    return str(ipaddress.IPv4Address(ip ^ MAGIC_COOKIE)), port ^ MAGIC_COOKIE >> 16


class Connection:
    """A connection with the server that speaks STUN."""

    def __init__(self, server: tuple[str, int], tls: bool, username: str, password: str):
        stream = socket.create_connection(server, SECONDS)
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            stream = context.wrap_socket(stream)
        self.stream, self.username, self.password = stream, username, password
        self.challenge: tuple[bytes, bytes] | None = None

    def read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = self.stream.recv(min(count - len(data), 65536))
            if not more:
                raise EOFError(f"the connection ends after {len(data)} of {count} bytes")
            data += more
        return data

    def message(self) -> tuple[int, dict[int, bytes], bytes]:
        """Type, attributes and transaction id of the next message."""
        kind, length, cookie, transaction = HEADER.unpack(self.read(HEADER.size))
        assert cookie == MAGIC_COOKIE
        body, attributes, offset = self.read(length), {}, 0
        while offset < length:
            name, size = struct.unpack_from("!HH", body, offset)
            attributes[name] = body[offset + 4 : offset + 4 + size]
            offset += 4 + (size + 3) // 4 * 4
        return kind, attributes, transaction

    def write(self, method: int, body: bytes, behind: bytes = b"") -> bytes:
        transaction, key = os.urandom(12), b""
        if self.challenge:
            realm, nonce = self.challenge
            body += attribute(USERNAME, self.username.encode()) + attribute(REALM, realm) + attribute(NONCE, nonce)
            key = hashlib.md5(b":".join([self.username.encode(), realm, self.password.encode()])).digest()
            head = HEADER.pack(method, len(body) + 24, MAGIC_COOKIE, transaction)
            body += attribute(INTEGRITY, hmac.new(key, head + body, hashlib.sha1).digest())
        self.stream.sendall(HEADER.pack(method, len(body), MAGIC_COOKIE, transaction) + body + behind)
        return transaction

    def request(self, method: int, body: bytes, behind: bytes = b"") -> dict[int, bytes]:
        """The attributes of the success; a challenge is answered once."""
        for _ in range(2):
            transaction = self.write(method, body, behind)
            kind, attributes, echoed = self.message()
            assert echoed == transaction and kind in (method | SUCCESS, method | ERROR), hex(kind)
            if kind == method | SUCCESS:
                return attributes
            code = attributes[ERROR_CODE][2] * 100 + attributes[ERROR_CODE][3]
            assert code == 401 and not self.challenge, f"{code} to method {method:#05x}"
            self.challenge = attributes[REALM], attributes[NONCE]
        raise AssertionError("challenged twice")


def run_client(server: str, port: str, tls_port: str, username: str, password: str, host: str, peer_port: str) -> None:
    peer = host, int(peer_port)
    ports = {False: int(port), True: int(tls_port)}
    for tls in (False, True):
        control = Connection((server, ports[tls]), tls, username, password)
        relayed = address_of(control.request(ALLOCATE, attribute(TRANSPORT, bytes([6, 0, 0, 0])))[RELAYED_ADDRESS])
        control.request(CREATE_PERMISSION, attribute(PEER_ADDRESS, xor_address(peer)))

        def data_connection(number: bytes, words: bytes) -> Connection:
            """Bound, with words behind the request."""
            data = Connection((server, ports[tls]), tls, username, password)
            data.challenge = control.challenge
            data.request(CONNECTION_BIND, attribute(CONNECTION_ID, number), words)
            return data

        # The client connects.
        number = control.request(CONNECT, attribute(PEER_ADDRESS, xor_address(peer)))[CONNECTION_ID]
        data = data_connection(number, b"echo\n")
        seen = data.read(64).decode().split()
        assert seen == [relayed[0], str(relayed[1])], f"the peer saw {seen}, not {relayed}"
        echoes(data)
        # The peer connects, which it is asked for over that connection.
        other = attribute(PEER_ADDRESS, xor_address((peer[0], peer[1] + 1)))
        data = data_connection(control.request(CONNECT, other)[CONNECTION_ID], b"call %s %d\n" % (relayed[0].encode(), relayed[1]))
        kind, attributes, _ = control.message()
        assert kind == ATTEMPT and address_of(attributes[PEER_ADDRESS])[0] == host, hex(kind)
        echoes(data_connection(attributes[CONNECTION_ID], b""))
        print("connected and was connected to", "over TLS" if tls else "over TCP")


def echoes(data: Connection) -> None:
    """Sends a lot in pieces, and each comes back; one thread, as a TLS session has no lock of its own."""
    for _ in range(PIECES):
        words = os.urandom(PIECE_BYTES)
        data.stream.sendall(words)
        assert data.read(PIECE_BYTES) == words, "what comes back is not what was sent"
    data.stream.close()


def run_peer(port: str) -> None:
    listeners = [socket.create_server(("", int(port) + offset)) for offset in (0, 1)]
    for listener in listeners[1:]:
        threading.Thread(target=accept, args=(listener,), daemon=True).start()
    accept(listeners[0])


def accept(listener: socket.socket) -> None:
    while True:
        stream, caller = listener.accept()
        threading.Thread(target=answer, args=(stream, caller), daemon=True).start()


def answer(stream: socket.socket, caller: tuple[str, int]) -> None:
    line = b""
    while not line.endswith(b"\n"):
        line += stream.recv(1)
    words = line.decode().split()
    if words[0] == "call":
        stream = socket.create_connection((words[1], int(words[2])), SECONDS)
    else:
        stream.sendall(f"{caller[0]} {caller[1]}".ljust(64).encode())
    while data := stream.recv(65536):
        stream.sendall(data)
    stream.close()


if __name__ == "__main__":
    {"client": run_client, "peer": run_peer}[sys.argv[1]](*sys.argv[2:])
