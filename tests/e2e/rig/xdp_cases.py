"""The kernel path by XDP where it does not work: a veth whose other end takes nothing from it."""

import time

from . import ethtool
from .cases import Rig, case, require
from .kernel_cases import CHANNEL, carried, client, drain, offloaded
from .lab import CLIENT_A, PEER, PEER_V4, SERVER
from .process import wait_until
from .server import Ferryd
from .turn import udp_socket


def counted(name: str) -> int:
    """A statistic of the server's interface, of all queues."""
    return sum(value for key, value in ethtool.statistics(SERVER, "wan").items() if key.endswith(name))


def is_carried_by(server: Ferryd, method: str) -> bool:
    return f'ferryd_offload_interfaces{{interface="wan",method="{method}"}}' in server.metrics()


@case
def where_xdp_loses_a_call_tc_takes_over(rig: Rig) -> None:
    # Senders complete their checksums, as network cards do: XDP leaves the others to the sockets.
    senders = [(CLIENT_A, "lan"), (PEER, "wan")]
    for namespace, interface in senders:
        ethtool.switch(namespace, interface, ethtool.SET_TX_CHECKSUMS, False)
    try:
        with offloaded(rig, "xdp") as server:
            lose_and_recover(server)
    finally:
        for namespace, interface in senders:
            ethtool.switch(namespace, interface, ethtool.SET_TX_CHECKSUMS, True)


def lose_and_recover(server: Ferryd) -> None:
    require(is_carried_by(server, "xdp"), f"XDP is not on the interface, see {server.log}")
    one = client(4, 4)
    peer = udp_socket(PEER, PEER_V4)
    one.bind(CHANNEL, peer.getsockname()[:2])

    def has_fallen_back() -> bool:
        for _ in range(10):
            one.send(CHANNEL, b"anybody there?")
            peer.sendto(b"anybody there?", one.relayed)
            time.sleep(0.005)
        return is_carried_by(server, "tcx")

    wait_until(has_fallen_back, 20, "tc takes over")
    require(counted("_xdp_tx_errors") > 0, "nothing was lost")
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
