"""Pairs of veth that behave as network cards do, for XDP."""

import contextlib
from collections.abc import Iterator

from . import ethtool
from .lab import CLIENT_A, CLIENT_B, CORE, PEER, SERVER, ip

# The router takes what XDP sends, and senders complete their checksums.
SWITCHES = [
    (CORE, "server", ethtool.SET_GRO, True),
    (CLIENT_A, "lan", ethtool.SET_TX_CHECKSUMS, False),
    (CLIENT_B, "lan", ethtool.SET_TX_CHECKSUMS, False),
    (PEER, "wan", ethtool.SET_TX_CHECKSUMS, False),
]


@contextlib.contextmanager
def fit_for_xdp() -> Iterator[None]:
    """The lab so that XDP can carry calls; afterwards it is as before."""
    before = [ethtool.is_on(namespace, interface, command) for namespace, interface, command, _ in SWITCHES]
    for namespace, interface, command, on in SWITCHES:
        ethtool.switch(namespace, interface, command, on)
    try:
        yield
    finally:
        for (namespace, interface, command, _), on in zip(SWITCHES, before):
            ethtool.switch(namespace, interface, command, on)


# A second way between a client and the server, without a router.
DIRECT_CLIENT, DIRECT_SERVER = "192.0.2.2", "192.0.2.1"


@contextlib.contextmanager
def direct_link() -> Iterator[None]:
    """An interface `direct` of the server and of the client, fit for XDP."""
    ip("link", "add", "direct", "netns", SERVER, "type", "veth", "peer", "name", "direct", "netns", CLIENT_A)
    try:
        for namespace, address in ((SERVER, DIRECT_SERVER), (CLIENT_A, DIRECT_CLIENT)):
            ip("-n", namespace, "addr", "add", f"{address}/24", "dev", "direct")
            ip("-n", namespace, "link", "set", "direct", "up")
        ethtool.switch(CLIENT_A, "direct", ethtool.SET_GRO, True)
        ethtool.switch(CLIENT_A, "direct", ethtool.SET_TX_CHECKSUMS, False)
        yield
    finally:
        ip("-n", SERVER, "link", "del", "direct")
