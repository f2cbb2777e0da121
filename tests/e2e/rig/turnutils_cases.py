"""coturn's own client and peer, and what the server's packets look like on the wire."""

import dataclasses
import pathlib
import re
import sys

from . import data_connections
from .capture import Capture, Datagram
from .cases import Rig, case, require
from .credentials import Credential, time_limited
from .lab import CLIENT_A, CORE, PEER, PEER_V4, PEER_V6, SERVER, SERVER_V4, SERVER_V6
from .process import Program, run_in, wait_until
from .server import STUN_PORT, TLS_PORT, binding_from
from .stun import BINDING_SUCCESS, DATA_INDICATION

PEER_PORT = 3480
MESSAGE_BYTES = 120
TOTALS = re.compile(r"start_mclient: tot_send_msgs=(\d+), tot_recv_msgs=(\d+)\n")
TOTAL_BYTES = re.compile(r"start_mclient: tot_send_bytes ~ (\d+), tot_recv_bytes ~ (\d+)\n")
CHANNELS: list[str] = []
INDICATIONS = ["-s"]
TCP = ["-t"]
TLS = ["-t", "-S"]
# Each connection draws lots between DTLS 1.0, which is refused, and 1.2, until it is established.
DTLS = ["-S"]
IPV6_RELAY = ["-x"]


@dataclasses.dataclass(frozen=True)
class Load:
    """What turnutils_uclient sends: its options and the messages that they come to."""

    options: list[str]
    messages: int


# One client with two allocations, an even port and the next one, and ten messages on each.
STREAM = Load(["-n", "10"], 20)
# Ten clients with an allocation and a message each. Over TLS turnutils_uclient takes one message from each
# read and forgets the rest, so messages that share a record, as they may, would count as lost.
SINGLES = Load(["-c", "-m", "10", "-n", "1"], 10)


class Peer:
    """turnutils_peer, echoing datagrams in the peer namespace while the `with` block runs."""

    def __init__(self, directory: pathlib.Path):
        self.log = directory / "peer.log"

    def __enter__(self):
        self.program = Program(
            PEER,
            ["turnutils_peer", "-p", str(PEER_PORT), "-L", PEER_V4, "-L", PEER_V6],
            self.log,
        )
        wait_until(self.is_bound, 20, "turnutils_peer binds its ports")
        return self

    def __exit__(self, *_) -> None:
        self.program.stop()

    def is_bound(self) -> bool:
        sockets = run_in(PEER, ["ss", "-Hunl"])
        return all(f"{address}:{PEER_PORT}" in sockets for address in (PEER_V4, f"[{PEER_V6}]"))


def exchange(rig: Rig, options: list[str], load: Load = STREAM, server: str = SERVER_V4, port: int = STUN_PORT,
             peer: str = PEER_V4, credential: Credential | None = None) -> None:
    """Sends messages through the server to the echoing peer; every one must come back.

    The exit status of turnutils_uclient is 0 whatever was lost, so its totals are read.
    """
    credential = credential or time_limited("uclient")
    command = [
        "turnutils_uclient", *options, *load.options, "-u", credential.username, "-w", credential.password,
        "-p", str(port), "-e", peer, "-r", str(PEER_PORT), "-l", str(MESSAGE_BYTES), server,
    ]
    with Peer(rig.directory):
        output = run_in(CLIENT_A, command)
    (rig.directory / "uclient.log").write_text(output)
    totals = [found.groups() if found else None for found in (TOTALS.search(output), TOTAL_BYTES.search(output))]
    messages, size = str(load.messages), str(load.messages * MESSAGE_BYTES)
    require(totals == [(messages, messages), (size, size)],
            f"(sent, received) messages and bytes: {totals}, not {messages} and {size}")


@case
def uclient_over_udp_with_channels(rig: Rig) -> None:
    exchange(rig, CHANNELS, credential=rig.server.static_credential())


@case
def uclient_over_udp_with_indications(rig: Rig) -> None:
    exchange(rig, INDICATIONS)


@case
def uclient_over_tcp_with_channels(rig: Rig) -> None:
    exchange(rig, TCP + CHANNELS)


@case
def uclient_over_tcp_with_indications(rig: Rig) -> None:
    exchange(rig, TCP + INDICATIONS)


@case
def uclient_over_tls_with_channels(rig: Rig) -> None:
    exchange(rig, TLS + CHANNELS, SINGLES, port=TLS_PORT)


@case
def uclient_over_tls_with_indications(rig: Rig) -> None:
    exchange(rig, TLS + INDICATIONS, SINGLES, port=TLS_PORT)


@case
def uclient_over_tls_on_the_port_of_plain_tcp(rig: Rig) -> None:
    exchange(rig, TLS + CHANNELS, SINGLES, port=STUN_PORT)


@case
def uclient_over_dtls_with_channels(rig: Rig) -> None:
    exchange(rig, DTLS + CHANNELS, port=TLS_PORT)


@case
def uclient_over_dtls_with_indications_on_the_port_of_plain_udp(rig: Rig) -> None:
    exchange(rig, DTLS + INDICATIONS, port=STUN_PORT)


@case
def uclient_over_ipv6(rig: Rig) -> None:
    exchange(rig, CHANNELS, server=SERVER_V6)


@case
def uclient_over_ipv4_reaches_an_ipv6_peer(rig: Rig) -> None:
    exchange(rig, IPV6_RELAY + CHANNELS, peer=PEER_V6)


# turnutils_uclient connects the relayed addresses of its own clients with each other.
@case
def uclient_connects_relayed_addresses_over_tcp(rig: Rig) -> None:
    exchange(rig, ["-T"], Load(["-m", "4", "-n", "5"], 20))


@case
def uclient_connects_relayed_addresses_over_tls(rig: Rig) -> None:
    exchange(rig, ["-T", "-S"], Load(["-m", "4", "-n", "1"], 4), port=TLS_PORT)


@case
def a_client_and_a_peer_connect_over_tcp(rig: Rig) -> None:
    script, credential = data_connections.__file__, time_limited("tcp")
    peer = Program(PEER, [sys.executable, script, "peer", str(PEER_PORT)], rig.directory / "peer.log")
    try:
        listens = f"0.0.0.0:{PEER_PORT + 1}"
        wait_until(lambda: listens in run_in(PEER, ["ss", "-Htnl"]), 20, "the peer listens")
        output = run_in(CLIENT_A, [
            sys.executable, script, "client", SERVER_V4, str(STUN_PORT), str(TLS_PORT), credential.username,
            credential.password, PEER_V4, str(PEER_PORT),
        ])
    finally:
        peer.stop()
    require(output.count("connected and was connected to") == 2, output)


def kind_of(datagram: Datagram) -> str | None:
    """What the server sent, for the kinds whose TTL is looked at."""
    if datagram.source != SERVER_V4:
        return None
    if datagram.destination == PEER_V4:
        return "relayed data to the peer"
    if datagram.source_port != STUN_PORT or not datagram.payload:
        return None
    first = int.from_bytes(datagram.payload[:2], "big")
    if 0x4000 <= first <= 0x7FFF:
        return "ChannelData"
    return {BINDING_SUCCESS: "Binding success", DATA_INDICATION: "Data indication"}.get(first)


@case
def packets_leave_the_server_with_a_ttl_that_survives_routers(rig: Rig) -> None:
    default = int(run_in(SERVER, ["cat", "/proc/sys/net/ipv4/ip_default_ttl"]))
    capture = Capture(CORE, "server", rig.directory / "ttl.pcap", "udp")
    try:
        binding_from(CLIENT_A, SERVER_V4)
        exchange(rig, CHANNELS)
        exchange(rig, INDICATIONS)
        kinds = {"Binding success", "Data indication", "ChannelData", "relayed data to the peer"}
        wait_until(lambda: kinds <= {kind_of(datagram) for datagram in capture.datagrams()}, 10,
                   f"{', '.join(sorted(kinds))} are captured")
        for datagram in capture.datagrams():
            kind = kind_of(datagram)
            if kind == "Binding success":
                require(datagram.ttl == default, f"{kind} with TTL {datagram.ttl}, not {default}")
            elif kind:
                # RFC 8656, section 13, lets a relay pass on the decremented TTL of the other side.
                require(default / 2 <= datagram.ttl <= default, f"{kind} with TTL {datagram.ttl}")
    finally:
        capture.stop()
