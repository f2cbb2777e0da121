"""The kernel path: open channels carried by tc programs in the server's namespace, where IP forwarding is off."""

import contextlib
import signal
import time
from collections.abc import Iterator

from .capture import Capture
from .cases import Rig, case, require
from .credentials import time_limited
from .lab import CLIENT_A, CLIENT_B, CORE, PEER, PEER_V4, PEER_V6, SERVER, SERVER_V4, SERVER_V6, apply_rules, ip
from .process import run_in, wait_until
from .server import STUN_PORT, Ferryd
from .turn import Client, udp_socket

CHANNEL = 0x4ABC
OF_CLIENT = {4: "10.1.0.2", 6: "fd00:1::2"}
OF_OTHER_CLIENT = {4: "10.2.0.2", 6: "fd00:2::2"}
OF_SERVER = {4: (SERVER_V4, STUN_PORT), 6: (SERVER_V6, STUN_PORT)}
OF_PEER = {4: PEER_V4, 6: PEER_V6}
FAMILIES = [(4, 4), (4, 6), (6, 4), (6, 6)]
# The headers of IPv6, UDP and ChannelData fit into 1500 bytes with 1448 of data.
FITS = [0, 1, 2, 3, 5, 160, 1200, 1447, 1448]
# Around the MTU by one header after the other, and far beyond.
EDGES = [1449, 1464, 1465, 1468, 1469, 1472, 1473, 4000]
CALL_PACKETS = 100
PROBE = b"probe"


@contextlib.contextmanager
def offloaded(rig: Rig, mode: str | None = None) -> Iterator[Ferryd]:
    """The server with the kernel path set to `mode`, or as it is forced on the run; afterwards it runs as before."""
    server = rig.server
    if not isinstance(server, Ferryd):
        raise RuntimeError(f"{server.name} has no kernel path")
    mode = mode or forced(server)
    before, server.offload = server.offload, mode
    server.stop()
    try:
        server.start()
        require(mode == "off" or any("offload_interfaces" in name for name in server.metrics()),
                f"no program is on any interface, see {server.log}")
        yield server
    finally:
        server.stop()
        server.offload = before
        server.start()


def forced(server: Ferryd) -> str:
    return "tc" if server.offload == "off" else server.offload


def carried(server: Ferryd, direction: str) -> int:
    return int(server.metrics()[f'ferryd_packets_total{{direction="{direction}",datapath="kernel"}}'])


def client(family: int, relayed: int, namespace: str = CLIENT_A, local: dict[int, str] | None = None) -> Client:
    return Client(namespace, (local or OF_CLIENT)[family], OF_SERVER[family], time_limited("kernel"), relayed)


def until_carried(server: Ferryd, one: Client, answers) -> int:
    """Sends and has the other end answer until both ways go by the kernel, which has to have seen both ends.

    Returns how many answers there were."""
    before = carried(server, "to_peer"), carried(server, "to_client")
    count = 0

    def are_carried() -> bool:
        nonlocal count
        one.send(CHANNEL, PROBE)
        answers()
        count += 1
        return all(carried(server, way) > earlier for way, earlier in zip(("to_peer", "to_client"), before))

    wait_until(are_carried, 10, "the kernel carries the channel")
    drain(one.socket)
    return count


def answering(peer, one: Client):
    """What has a peer answer a probe."""
    return lambda: peer.sendto(PROBE, one.relayed)


def drain(*sockets) -> None:
    for each in sockets:
        each.settimeout(0.2)
        with contextlib.suppress(TimeoutError):
            while True:
                each.recv(65536)
        each.settimeout(1)


def last_record(server: Ferryd) -> str:
    """The session record of the allocation that ended last."""
    lines = [line for line in server.log.read_text().splitlines() if "allocation ended" in line]
    return lines[-1] if lines else ""


@case
def the_kernel_carries_every_size_between_all_families(rig: Rig) -> None:
    switches = run_in(SERVER, ["sysctl", "-n", "net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"]).split()
    require(switches == ["0", "0"], f"IP forwarding is {switches} on the server")
    with offloaded(rig) as server:
        for family, relayed in FAMILIES:
            one = client(family, relayed)
            peer = udp_socket(PEER, OF_PEER[relayed])
            one.bind(CHANNEL, peer.getsockname()[:2])
            probes = until_carried(server, one, answering(peer, one))
            drain(peer)
            before = carried(server, "to_peer"), carried(server, "to_client")
            sent = 0
            for size in FITS + EDGES:
                data = bytes((size + index) % 256 for index in range(size))
                one.send(CHANNEL, data)
                got, source = peer.recvfrom(65536)
                require(got == data and source[:2] == one.relayed, f"{size} bytes from {source}, not {one.relayed}")
                peer.sendto(data, source)
                require(one.receive() == (CHANNEL, data), f"{size} bytes came back otherwise")
                sent += size
            now = carried(server, "to_peer"), carried(server, "to_client")
            require(all(after - earlier >= len(FITS) for earlier, after in zip(before, now)),
                    f"IPv{family} to IPv{relayed}: the kernel carried {before} and then {now} packets")
            one.refresh(0)
            count = len(FITS) + len(EDGES) + probes
            sent += len(PROBE) * probes
            wait_until(lambda: f"packets_to_client={count} bytes_to_client={sent}" in last_record(server), 10,
                       f"the record counts {count} packets and {sent} bytes")
            one.close()
            peer.close()


@case
def the_kernel_lowers_the_hop_limit_and_the_sockets_do_not(rig: Rig) -> None:
    for mode, family in [(forced(rig.server), 4), (forced(rig.server), 6), ("off", 4)]:
        with offloaded(rig, mode) as server:
            one = client(family, family)
            peer = udp_socket(PEER, OF_PEER[family])
            one.bind(CHANNEL, peer.getsockname()[:2])
            if mode != "off":
                until_carried(server, one, answering(peer, one))
            drain(peer)
            capture = Capture(CORE, "peer", rig.directory / f"{mode}{family}.pcap", "udp")
            one.send(CHANNEL, b"how far")
            peer.recv(65536)
            wait_until(lambda: [packet for packet in capture.datagrams() if packet.payload == b"how far"], 10,
                       "the packet is captured")
            capture.stop()
            hops = {packet.ttl for packet in capture.datagrams() if packet.payload == b"how far"}
            # From 64: two routers before the server, the server, and the router after it.
            wanted = {63} if mode == "off" else {60}
            require(hops == wanted, f"{mode}, IPv{family}: hop limits {hops}, not {wanted}")
            one.close()
            peer.close()


@case
def two_clients_of_the_server_reach_each_other_in_the_kernel(rig: Rig) -> None:
    with offloaded(rig) as server:
        for family, other_family in FAMILIES:
            one = client(family, 4)
            other = client(other_family, 4, CLIENT_B, OF_OTHER_CLIENT)
            one.bind(CHANNEL, other.relayed)
            other.bind(CHANNEL + 1, one.relayed)
            until_carried(server, one, lambda: other.send(CHANNEL + 1, PROBE))
            drain(other.socket)
            before = carried(server, "to_client")
            for size in FITS:
                one.send(CHANNEL, bytes(size))
                require(other.receive() == (CHANNEL + 1, bytes(size)), f"{size} bytes there")
                other.send(CHANNEL + 1, bytes(size))
                require(one.receive() == (CHANNEL, bytes(size)), f"{size} bytes back")
            got = carried(server, "to_client") - before
            require(got == 2 * len(FITS), f"the kernel carried {got} of {2 * len(FITS)} packets")
            one.refresh(0)
            # What is left of the call is nobody's.
            other.send(CHANNEL + 1, b"anybody there?")
            with contextlib.suppress(TimeoutError):
                raise AssertionError(f"a released allocation got {one.socket.recv(65536)!r}")
            one.close()
            other.close()


@case
def nothing_passes_a_released_allocation_or_a_killed_daemon(rig: Rig) -> None:
    with offloaded(rig) as server:
        for end in ("release", "kill"):
            one = client(4, 4)
            peer = udp_socket(PEER, PEER_V4)
            one.bind(CHANNEL, peer.getsockname()[:2])
            until_carried(server, one, answering(peer, one))
            drain(peer)
            if end == "release":
                one.refresh(0)
            else:
                # The links of the programs are the process's: they end with it.
                server.program.stop(signal.SIGKILL)
            one.send(CHANNEL, b"too late")
            peer.sendto(b"too late", one.relayed)
            for each, who in ((peer, "peer"), (one.socket, "client")):
                with contextlib.suppress(TimeoutError, ConnectionRefusedError):
                    raise AssertionError(f"after {end} the {who} got {each.recv(65536)!r}")
            one.close()
            peer.close()


@case
def filters_of_older_kernels_are_taken_away_by_a_stop_a_start_and_detach(rig: Rig) -> None:
    if not isinstance(rig.server, Ferryd):
        raise RuntimeError(f"{rig.server.name} has no kernel path")
    detach = ["env", "-u", "FERRYD_BIN", str(rig.server.binary), "detach"]
    with offloaded(rig, "clsact") as server:
        require("ferryd_tc" in filters(), "there is no filter")
        server.stop()
        require("ferryd_tc" not in filters(), "the filter outlives a stop")
        for remedy in ("detach", "start"):
            server.start()
            one = client(4, 4)
            peer = udp_socket(PEER, PEER_V4)
            one.bind(CHANNEL, peer.getsockname()[:2])
            until_carried(server, one, answering(peer, one))
            drain(peer)
            server.program.stop(signal.SIGKILL)
            # As documented: until the permission ends, or somebody takes the filter away.
            one.send(CHANNEL, b"carried by nobody's program")
            require(peer.recv(65536) == b"carried by nobody's program", "the filter is there")
            if remedy == "detach":
                told = run_in(SERVER, detach)
                require("wan" in told, f"detach told {told!r}")
                require(run_in(SERVER, detach) == "", "a second time there is nothing")
            else:
                server.start()
                require("left its filter" in server.log.read_text(), f"the start is silent, see {server.log}")
            one.send(CHANNEL, b"too late")
            with contextlib.suppress(TimeoutError, ConnectionRefusedError):
                raise AssertionError(f"after {remedy} the peer got {peer.recv(65536)!r}")
            one.close()
            peer.close()


def filters() -> str:
    return run_in(SERVER, ["tc", "filter", "show", "dev", "wan", "ingress"])


# A host that lets in requests, and answers to what it has sent: the relay ports are closed otherwise.
STATEFUL = """
table inet stateful {
    chain input {
        type filter hook input priority filter; policy drop
        iifname "lo" accept
        ct state established,related accept
        meta l4proto { icmp, ipv6-icmp } accept
        tcp dport { 443, 3478, 5349 } accept
        udp dport 3478 counter accept
    }
}
"""


# conntrack forgets a flow after so many seconds, a little more than the kernel path keeps its packets from it.
FORGETS_SECONDS = 17


@case
def a_stateful_firewall_stands_beside_the_kernel_path(rig: Rig) -> None:
    apply_rules(SERVER, STATEFUL)
    timeouts = ["net.netfilter.nf_conntrack_udp_timeout", "net.netfilter.nf_conntrack_udp_timeout_stream"]
    before = run_in(SERVER, ["sysctl", "-n", *timeouts]).split()
    set_all(timeouts, [FORGETS_SECONDS] * 2)
    try:
        with offloaded(rig) as server:
            one = client(4, 4)
            peer = udp_socket(PEER, PEER_V4)
            one.bind(CHANNEL, peer.getsockname()[:2])
            # The firewall opens for what the peer answers.
            one.send(CHANNEL, PROBE)
            _, source = peer.recvfrom(65536)
            until_carried(server, one, answering(peer, one))
            drain(peer)
            began = counted()
            for _ in range(CALL_PACKETS):
                one.send(CHANNEL, b"data")
                peer.recv(65536)
                peer.sendto(b"data", source)
                require(one.receive() == (CHANNEL, b"data"), "the answer")
                time.sleep((FORGETS_SECONDS + 3) / CALL_PACKETS)
            # As documented: what the kernel carries is seen by no rule.
            require(counted() == began, f"the rules counted {counted() - began} packets of the channel")
            # What outgrows the MTU goes by the sockets, and so by the rules, which have not forgotten the call.
            for size in (1470, 3000):
                peer.sendto(bytes(size), source)
                require(one.receive() == (CHANNEL, bytes(size)), f"{size} bytes back")
                one.send(CHANNEL, bytes(size))
                require(peer.recv(65536) == bytes(size), f"{size} bytes there")
            one.close()
            peer.close()
    finally:
        set_all(timeouts, before)
        apply_rules(SERVER, "delete table inet stateful")


def set_all(names: list[str], values: list) -> None:
    run_in(SERVER, ["sysctl", "-q", *(f"{name}={value}" for name, value in zip(names, values))])


# What a host does that gives its servers other addresses than they know of.
OTHER_PORT, OTHER_ADDRESS = 3479, "203.0.113.2"
HOST_NAT = f"""
table ip hostnat {{
    chain prerouting {{
        type nat hook prerouting priority dstnat
        udp dport {OTHER_PORT} redirect to :{STUN_PORT}
    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat
        ip daddr {PEER_V4} udp dport 7000 snat to {OTHER_ADDRESS}
    }}
}}
"""


@case
def what_the_host_translates_stays_with_the_sockets(rig: Rig) -> None:
    ip("-n", SERVER, "addr", "add", f"{OTHER_ADDRESS}/25", "dev", "wan")
    apply_rules(SERVER, HOST_NAT)
    try:
        with offloaded(rig) as server:
            # The client's side, the peer's side, and neither; what is not translated is carried all the same.
            for port, peer_port, seen in [(OTHER_PORT, 0, SERVER_V4), (STUN_PORT, 7000, OTHER_ADDRESS),
                                          (STUN_PORT, 0, SERVER_V4)]:
                one = Client(CLIENT_A, OF_CLIENT[4], (SERVER_V4, port), time_limited("kernel"), 4)
                peer = udp_socket(PEER, PEER_V4, peer_port)
                one.bind(CHANNEL, peer.getsockname()[:2])
                before = [carried(server, way) for way in ("to_peer", "to_client")]
                for _ in range(CALL_PACKETS):
                    one.send(CHANNEL, b"there")
                    got, source = peer.recvfrom(65536)
                    require((got, source[0]) == (b"there", seen), f"the peer got {got!r} from {source}")
                    peer.sendto(b"back", source)
                    got, source = one.socket.recvfrom(65536)
                    require(got[4:] == b"back" and source == (SERVER_V4, port), f"the client got {got!r} of {source}")
                now = [carried(server, way) for way in ("to_peer", "to_client")]
                is_translated = (port, peer_port) != (STUN_PORT, 0)
                require((now == before) == is_translated, f"{port} to {peer_port}: carried {before} and then {now}")
                one.close()
                peer.close()
    finally:
        apply_rules(SERVER, "delete table ip hostnat")
        ip("-n", SERVER, "addr", "del", f"{OTHER_ADDRESS}/25", "dev", "wan")


def counted() -> int:
    rules = run_in(SERVER, ["nft", "list", "table", "inet", "stateful"])
    return int(rules.split("counter packets ")[1].split()[0])
