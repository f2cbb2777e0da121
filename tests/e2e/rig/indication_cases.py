"""The kernel path with Send and Data indications."""

import contextlib

from .browser import CHROMIUM, FIREFOX
from .browser_cases import UDP, relayed_call
from .cases import Rig, case, require
from .kernel_cases import (
    CALL_PACKETS,
    FAMILIES,
    OF_PEER,
    PROBE,
    carried,
    client,
    drain,
    last_record,
    offloaded,
)
from .lab import PEER
from .process import wait_until
from .server import Ferryd
from .turn import Client, udp_socket
from .veth import fit_for_xdp

# The headers of IPv6, UDP and a Data indication of an IPv6 peer fit into 1500 bytes with 1404 of data.
FITS = [0, 1, 2, 3, 4, 160, 1201, 1395, 1396, 1403, 1404]
# A FINGERPRINT takes eight bytes of the client's packet.
FITS_WITH_FINGERPRINT = 1396
# Around the MTU by one header after the other, and far beyond.
EDGES = [1405, 1425, 1437, 4000]


def until_carried(server: Ferryd, one: Client, peer) -> int:
    """Has both ends send until both ways go by the kernel; returns how often they did."""
    before = carried(server, "to_peer"), carried(server, "to_client")
    count = 0

    def are_carried() -> bool:
        nonlocal count
        one.indicate(peer.getsockname()[:2], PROBE, count % 2 == 0)
        peer.sendto(PROBE, one.relayed)
        count += 1
        return all(carried(server, way) > earlier for way, earlier in zip(("to_peer", "to_client"), before))

    wait_until(are_carried, 10, "the kernel carries indications")
    drain(one.socket, peer)
    return count


@case
def indications_of_every_size_are_carried_between_all_families(rig: Rig) -> None:
    for mode, families in (("tc", FAMILIES), ("xdp", [(4, 4), (6, 6)])):
        with fit_for_xdp() if mode == "xdp" else contextlib.nullcontext(), offloaded(rig, mode) as server:
            for family, relayed in families:
                one = client(family, relayed)
                peer = udp_socket(PEER, OF_PEER[relayed])
                address = peer.getsockname()[:2]
                one.permit(address)
                probes = until_carried(server, one, peer)
                before = carried(server, "to_peer"), carried(server, "to_client")
                for index, size in enumerate(FITS + EDGES):
                    data = bytes((size + at) % 256 for at in range(size))
                    one.indicate(address, data, index % 2 == 0 and size <= FITS_WITH_FINGERPRINT)
                    got, source = peer.recvfrom(65536)
                    require(got == data and source[:2] == one.relayed, f"{mode}: {size} bytes from {source}")
                    peer.sendto(data, source)
                    require(one.receive_indication() == (address, data), f"{mode}: {size} bytes came back otherwise")
                now = carried(server, "to_peer"), carried(server, "to_client")
                # A veth's packet may have no room for padding behind it, which XDP leaves to the sockets.
                wanted = len(FITS), len(FITS) if mode == "tc" else sum(size % 4 == 0 for size in FITS)
                require(all(after - earlier >= count for earlier, after, count in zip(before, now, wanted)),
                        f"{mode}, IPv{family} to IPv{relayed}: the kernel carried {before} and then {now} packets")
                one.refresh(0)
                count = len(FITS) + len(EDGES) + probes
                sent = sum(FITS + EDGES) + len(PROBE) * probes
                wait_until(lambda: f"packets_to_client={count} bytes_to_client={sent}" in last_record(server), 10,
                           f"the record counts {count} packets and {sent} bytes")
                one.close()
                peer.close()


@case
def a_call_of_firefox_with_chromium_runs_in_the_kernel(rig: Rig) -> None:
    with offloaded(rig) as server:
        # Firefox binds no channel: what goes to Chromium by the kernel has come in Send indications, and what comes back
        # is ChannelData that has become Data indications.
        relayed_call(rig, FIREFOX, CHROMIUM, UDP)
        to_client = carried(server, "to_client")
        require(to_client >= CALL_PACKETS, f"the kernel carried {to_client} packets of the call")
