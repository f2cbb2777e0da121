"""A minimal STUN client: sends Binding requests until one is answered (RFC 8489).

Run as a program inside a namespace: stun.py ADDRESS PORT [SECONDS]; prints the mapped address.
"""

import ipaddress
import os
import socket
import struct
import sys
import time

MAGIC_COOKIE = 0x2112A442
BINDING_REQUEST = 0x0001
BINDING_SUCCESS = 0x0101
DATA_INDICATION = 0x0017
XOR_MAPPED_ADDRESS = 0x0020
HEADER = struct.Struct("!HHI12s")
RETRANSMIT_SECONDS = 0.25


def mapped_address(response: bytes, transaction_id: bytes) -> str | None:
    """The XOR-MAPPED-ADDRESS of a Binding success to `transaction_id`, as "address:port"."""
    if len(response) < HEADER.size:
        return None
    kind, length, cookie, echoed = HEADER.unpack_from(response)
    if kind != BINDING_SUCCESS or cookie != MAGIC_COOKIE or echoed != transaction_id:
        return None
    offset = HEADER.size
    while offset + 4 <= HEADER.size + length:
        attribute, size = struct.unpack_from("!HH", response, offset)
        if attribute == XOR_MAPPED_ADDRESS:
            value = response[offset + 4 : offset + 4 + size]
            port = struct.unpack_from("!H", value, 2)[0] ^ (MAGIC_COOKIE >> 16)
            key = struct.pack("!I", MAGIC_COOKIE) + transaction_id
            address = ipaddress.ip_address(bytes(a ^ b for a, b in zip(value[4:], key)))
            return f"{address}:{port}" if address.version == 4 else f"[{address}]:{port}"
        offset += 4 + (size + 3) // 4 * 4
    return None


def bind(address: str, port: int, seconds: float) -> str:
    """Asks until answered; raises `TimeoutError` after `seconds`."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    deadline = time.monotonic() + seconds
    with socket.socket(family, socket.SOCK_DGRAM) as client:
        client.connect((address, port))
        client.settimeout(RETRANSMIT_SECONDS)
        transaction_id = os.urandom(12)
        request = HEADER.pack(BINDING_REQUEST, 0, MAGIC_COOKIE, transaction_id)
        while time.monotonic() < deadline:
            try:
                client.send(request)
                mapped = mapped_address(client.recv(2048), transaction_id)
            except ConnectionRefusedError:
                time.sleep(RETRANSMIT_SECONDS)
                continue
            except TimeoutError:
                continue
            if mapped:
                return mapped
    raise TimeoutError(f"no Binding success from {address} port {port} within {seconds:g} s")


if __name__ == "__main__":
    try:
        print(bind(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]) if len(sys.argv) > 3 else 10))
    except TimeoutError as error:
        sys.exit(str(error))
