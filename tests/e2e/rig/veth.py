"""Pairs of veth that behave as network cards do, for XDP."""

import contextlib
from collections.abc import Iterator

from . import ethtool
from .lab import CLIENT_A, CLIENT_B, CORE, PEER

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
