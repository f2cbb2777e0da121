"""What ethtool does, for interfaces of a namespace: a feature switched, the statistics of a driver."""

import ctypes
import fcntl
import struct

from .turn import udp_socket

SIOCETHTOOL = 0x8946
# linux/ethtool.h: commands, and the number of statistics in struct ethtool_drvinfo.
GET_DRIVER, GET_NAMES, GET_STATISTICS = 0x03, 0x1B, 0x1D
SET_TX_CHECKSUMS, SET_GRO = 0x17, 0x2C
STATISTICS = 1
DRIVER_BYTES, STATISTICS_AT = 196, 180
NAME_BYTES = 32


def switch(namespace: str, interface: str, command: int, on: bool) -> None:
    ask(namespace, interface, struct.pack("II", command, on))


def is_on(namespace: str, interface: str, command: int) -> bool:
    """What `switch` has last set with this command."""
    # The command that reads has the number before.
    return struct.unpack("II", ask(namespace, interface, struct.pack("II", command - 1, 0)))[1] != 0


def statistics(namespace: str, interface: str) -> dict[str, int]:
    """Every statistic of the driver, by name."""
    driver = ask(namespace, interface, struct.pack("I", GET_DRIVER).ljust(DRIVER_BYTES, b"\0"))
    count = struct.unpack_from("I", driver, STATISTICS_AT)[0]
    head = struct.pack("III", GET_NAMES, STATISTICS, count)
    names = ask(namespace, interface, head + bytes(NAME_BYTES * count))[len(head) :]
    head = struct.pack("II", GET_STATISTICS, count)
    values = struct.unpack(f"{count}Q", ask(namespace, interface, head + bytes(8 * count))[len(head) :])
    texts = (names[at : at + NAME_BYTES].split(b"\0")[0].decode() for at in range(0, len(names), NAME_BYTES))
    return dict(zip(texts, values))


def ask(namespace: str, interface: str, data: bytes) -> bytes:
    buffer = ctypes.create_string_buffer(data, len(data))
    with udp_socket(namespace, "0.0.0.0") as socket:
        fcntl.ioctl(socket, SIOCETHTOOL, struct.pack("16sP8x", interface.encode(), ctypes.addressof(buffer)))
    return buffer.raw
