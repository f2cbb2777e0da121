"""Packet captures: tcpdump in a namespace, and a reader of what it wrote."""

import dataclasses
import ipaddress
import pathlib
import signal
import struct
from collections.abc import Iterator

from .process import Program, wait_until

UDP = 17
ETHERNET_BYTES = 14
IPV4, IPV6 = 0x0800, 0x86DD


@dataclasses.dataclass(frozen=True)
class Datagram:
    """One captured UDP datagram; `ttl` is the IPv6 hop limit where the packet is IPv6."""

    source: str
    source_port: int
    destination: str
    destination_port: int
    ttl: int
    payload: bytes


class Capture:
    """tcpdump on one interface of a namespace, ready when the constructor returns."""

    def __init__(self, namespace: str, interface: str, pcap: pathlib.Path, expression: str = ""):
        self.pcap = pcap
        log = pcap.with_suffix(".tcpdump.log")
        log.write_bytes(b"")
        self.program = Program(
            namespace,
            ["tcpdump", "-i", interface, "-n", "-U", "--immediate-mode", "-s", "256", "-Z", "root",
             "-w", str(pcap), *expression.split()],
            log,
        )
        wait_until(lambda: b"listening on" in log.read_bytes(), 20, "tcpdump listens")

    def stop(self) -> None:
        self.program.stop(signal.SIGINT)
        self.program.log.unlink(missing_ok=True)

    def datagrams(self) -> list[Datagram]:
        """Every UDP datagram written so far."""
        return [datagram for frame in frames(self.pcap.read_bytes()) if (datagram := parse(frame))]


def frames(pcap: bytes) -> Iterator[bytes]:
    """The Ethernet frames of a little-endian pcap file; a half-written last one is left out."""
    offset = 24
    while offset + 16 <= len(pcap):
        captured = struct.unpack_from("<I", pcap, offset + 8)[0]
        if offset + 16 + captured > len(pcap):
            return
        yield pcap[offset + 16 : offset + 16 + captured]
        offset += 16 + captured


def parse(frame: bytes) -> Datagram | None:
    """The UDP datagram in a frame, `None` for anything else."""
    ethertype = struct.unpack_from("!H", frame, 12)[0]
    packet = frame[ETHERNET_BYTES:]
    if ethertype == IPV4 and packet[9] == UDP:
        ttl, source, destination = packet[8], packet[12:16], packet[16:20]
        udp = packet[(packet[0] & 0x0F) * 4 :]
    elif ethertype == IPV6 and packet[6] == UDP:
        ttl, source, destination = packet[7], packet[8:24], packet[24:40]
        udp = packet[40:]
    else:
        return None
    source_port, destination_port = struct.unpack_from("!HH", udp)
    return Datagram(
        str(ipaddress.ip_address(source)), source_port,
        str(ipaddress.ip_address(destination)), destination_port,
        ttl, udp[8:],
    )
