"""The kernel path by XDP on a veth, where it is asked for by name; and what happens where it does not work."""

import time

from . import ethtool
from .capture import Capture
from .cases import Rig, case, require
from .credentials import time_limited
from .kernel_cases import (
    CHANNEL,
    EDGES,
    FAMILIES,
    FITS,
    OF_PEER,
    answering,
    carried,
    client,
    drain,
    offloaded,
    until_carried,
)
from .lab import CLIENT_A, CORE, PEER, PEER_V4, SERVER
from .process import wait_until
from .server import STUN_PORT
from .turn import Client, udp_socket
from .veth import DIRECT_CLIENT, DIRECT_SERVER, direct_link, fit_for_xdp


def redirected(interface: str = "wan") -> int:
    """Packets that XDP has taken from an interface of the server's and sent."""
    statistics = ethtool.statistics(SERVER, interface).items()
    return sum(value for name, value in statistics if name.endswith("_xdp_redirect"))


@case
def xdp_carries_every_size_between_all_families(rig: Rig) -> None:
    with fit_for_xdp(), offloaded(rig, "xdp") as server:
        require(server.is_carried_by("xdp"), f"XDP is not on the interface, see {server.log}")
        for family, relayed in FAMILIES:
            one = client(family, relayed)
            peer = udp_socket(PEER, OF_PEER[relayed])
            one.bind(CHANNEL, peer.getsockname()[:2])
            until_carried(server, one, answering(peer, one))
            drain(peer)
            before = redirected()
            for size in FITS + EDGES:
                data = bytes((size + index) % 256 for index in range(size))
                one.send(CHANNEL, data)
                got, source = peer.recvfrom(65536)
                require(got == data and source[:2] == one.relayed, f"{size} bytes from {source}, not {one.relayed}")
                peer.sendto(data, source)
                require(one.receive() == (CHANNEL, data), f"{size} bytes came back otherwise")
            sent = redirected() - before
            require(sent >= 2 * len(FITS), f"IPv{family} to IPv{relayed}: XDP sent {sent} packets")
            one.refresh(0)
            one.close()
            peer.close()
        require(server.is_carried_by("xdp"), "XDP was given up")


@case
def a_call_crosses_two_interfaces_when_a_reload_adds_a_listener_on_the_second(rig: Rig) -> None:
    for mode, method in (("tc", "tcx"), ("xdp", "xdp")):
        with fit_for_xdp(), direct_link(), offloaded(rig, mode) as server:
            require(server.is_carried_by(method), f"{mode} is not on the interface, see {server.log}")
            require(not server.is_carried_by(method, "direct"), "nobody serves the second interface yet")
            server.more_listeners = f'{{ address = "{DIRECT_SERVER}:{STUN_PORT}", transport = "udp" }},\n'
            try:
                server.reload()
                require(server.is_carried_by(method, "direct"), f"{mode} is not on the second one, see {server.log}")
                one = Client(CLIENT_A, DIRECT_CLIENT, (DIRECT_SERVER, STUN_PORT), time_limited("kernel"), 4)
                peer = udp_socket(PEER, PEER_V4)
                one.bind(CHANNEL, peer.getsockname()[:2])
                until_carried(server, one, answering(peer, one))
                drain(peer)
                before = carried(server, "to_peer"), carried(server, "to_client")
                taken = redirected(), redirected("direct")
                for size in FITS:
                    data = bytes((size + index) % 256 for index in range(size))
                    one.send(CHANNEL, data)
                    require(peer.recv(65536) == data, f"{mode}: {size} bytes there")
                    peer.sendto(data, one.relayed)
                    require(one.receive() == (CHANNEL, data), f"{mode}: {size} bytes back")
                now = carried(server, "to_peer"), carried(server, "to_client")
                require(now == tuple(count + len(FITS) for count in before), f"{mode}: carried {before} and then {now}")
                if mode == "xdp":
                    sent = redirected() - taken[0], redirected("direct") - taken[1]
                    require(sent == (len(FITS), len(FITS)), f"XDP took {sent} packets from the two interfaces")
                # The interface stays the kernel's, and the call is up, when the listener is gone.
                server.more_listeners = ""
                server.reload()
                one.send(CHANNEL, b"still there?")
                require(peer.recv(65536) == b"still there?", f"{mode}: after the listener is gone")
                one.close()
                peer.close()
            finally:
                server.more_listeners = ""


@case
def xdp_lowers_the_hop_limit(rig: Rig) -> None:
    with fit_for_xdp(), offloaded(rig, "xdp") as server:
        for family in (4, 6):
            one = client(family, family)
            peer = udp_socket(PEER, OF_PEER[family])
            one.bind(CHANNEL, peer.getsockname()[:2])
            until_carried(server, one, answering(peer, one))
            drain(peer)
            capture = Capture(CORE, "peer", rig.directory / f"xdp{family}.pcap", "udp")
            one.send(CHANNEL, b"how far")
            peer.recv(65536)

            def captured() -> set[int]:
                return {packet.ttl for packet in capture.datagrams() if packet.payload == b"how far"}

            wait_until(lambda: bool(captured()), 10, "the packet is captured")
            capture.stop()
            # From 64: two routers before the server, the server, and the router after it.
            require(captured() == {60}, f"IPv{family}: hop limits {captured()}")
            one.close()
            peer.close()


@case
def where_xdp_loses_a_call_tc_takes_over(rig: Rig) -> None:
    with fit_for_xdp():
        # Now the other end of the veth takes nothing from XDP any more.
        ethtool.switch(CORE, "server", ethtool.SET_GRO, False)
        with offloaded(rig, "xdp") as server:
            require(server.is_carried_by("xdp"), f"XDP is not on the interface, see {server.log}")
            one = client(4, 4)
            peer = udp_socket(PEER, PEER_V4)
            one.bind(CHANNEL, peer.getsockname()[:2])

            def has_fallen_back() -> bool:
                for _ in range(10):
                    one.send(CHANNEL, b"anybody there?")
                    peer.sendto(b"anybody there?", one.relayed)
                    time.sleep(0.005)
                return server.is_carried_by("tcx")

            wait_until(has_fallen_back, 20, "tc takes over")
            require(ethtool.statistics(SERVER, "wan")["rx_queue_0_drops"] > 0, "nothing was lost")
            require("loses what the kernel path" in server.log.read_text(), "the log says so")
            drain(peer, one.socket)
            before = carried(server, "to_peer"), carried(server, "to_client")
            for _ in range(20):
                one.send(CHANNEL, b"here again")
                require(peer.recv(65536) == b"here again", "the packet")
                peer.sendto(b"here again", one.relayed)
                require(one.receive() == (CHANNEL, b"here again"), "the answer")
            now = carried(server, "to_peer"), carried(server, "to_client")
            require(all(after - earlier >= 20 for earlier, after in zip(before, now)), f"{before} and then {now}")
            one.close()
            peer.close()
