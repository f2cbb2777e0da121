"""Calls between browsers behind symmetric NATs."""

import dataclasses

from .browser import CHROMIUM, FIREFOX
from .cases import Rig, case, require
from .credentials import Credential, time_limited
from .lab import CLIENT_A, CLIENT_B, NAT_A, NAT_B, NO_UDP, ONLY_TCP_443, OPEN, SERVER_NAME, SERVER_V4
from .side import Call

STUN_URL = f"stun:{SERVER_V4}:3478"
MESSAGES = {"count": 50, "size": 1000}
FRAMES = 10
CONNECT_SECONDS = 60


@dataclasses.dataclass(frozen=True)
class Path:
    """A way to the server: its URL, what the clients' networks let out, the protocol to be seen."""

    url: str
    restriction: str
    relay_protocol: str


UDP = Path(f"turn:{SERVER_V4}:3478?transport=udp", OPEN, "udp")
TCP = Path(f"turn:{SERVER_V4}:3478?transport=tcp", NO_UDP, "tcp")
TLS = Path(f"turns:{SERVER_NAME}:443?transport=tcp", ONLY_TCP_443, "tls")


def turn_server(url: str, credential: Credential) -> dict:
    return {"urls": url, "username": credential.username, "credential": credential.password}


def relayed_call(rig: Rig, caller: str, callee: str, path: Path, credential: Credential | None = None) -> None:
    """A relay-only call with messages and video both ways."""
    for nat in (NAT_A, NAT_B):
        rig.lab.restrict(nat, path.restriction)
    call = Call(rig.browsers.get(caller, CLIENT_A), rig.browsers.get(callee, CLIENT_B))
    configuration = {
        "iceServers": [turn_server(path.url, credential or time_limited("browser"))],
        "iceTransportPolicy": "relay",
    }
    for types in call.establish(configuration, media=True):
        require(set(types) == {"relay"}, f"candidates other than relay: {types}")
    states = call.both("outcome", seconds=CONNECT_SECONDS)
    require(states == ["connected", "connected"], f"connection states {states}")
    call.both("send", MESSAGES)
    call.both("receive", MESSAGES)
    for side, video in zip(call.sides, call.both("watch", {"frames": FRAMES})):
        require(video["bytes"] > 0, f"{side.name}: decoded video without bytes: {video}")
    wanted = {"local": "relay", "remote": "relay", "relayProtocol": path.relay_protocol}
    for side, pair in zip(call.sides, call.both("selectedPair")):
        require(pair == wanted, f"{side.name}: selected pair {pair}, not {wanted}")
    call.both("close")


def direct_call(rig: Rig, servers: list[dict]) -> list[str]:
    """A call of Chromium with Chromium over whatever ICE finds; returns both final states."""
    call = Call(rig.browsers.get(CHROMIUM, CLIENT_A), rig.browsers.get(CHROMIUM, CLIENT_B))
    configuration = {"iceServers": servers, "iceTransportPolicy": "all"}
    for types in call.establish(configuration, media=False):
        require("srflx" in types, f"no server-reflexive candidate, STUN is not answered: {types}")
    states = call.both("outcome", seconds=CONNECT_SECONDS)
    if states == ["connected", "connected"]:
        for side, pair in zip(call.sides, call.both("selectedPair")):
            require("relay" in (pair["local"], pair["remote"]), f"{side.name}: connected past the NATs: {pair}")
    call.both("close")
    return states


@case
def stun_alone_does_not_connect_clients_behind_symmetric_nats(rig: Rig) -> None:
    states = direct_call(rig, [{"urls": STUN_URL}])
    require(states == ["failed", "failed"], f"connection states {states}: the NATs are not symmetric")


@case
def turn_connects_clients_behind_symmetric_nats(rig: Rig) -> None:
    servers = [{"urls": STUN_URL}, turn_server(UDP.url, time_limited("browser"))]
    states = direct_call(rig, servers)
    require(states == ["connected", "connected"], f"connection states {states}")


@case
def chromium_calls_chromium_over_udp(rig: Rig) -> None:
    relayed_call(rig, CHROMIUM, CHROMIUM, UDP)


@case
def chromium_calls_chromium_over_tcp_where_udp_is_blocked(rig: Rig) -> None:
    relayed_call(rig, CHROMIUM, CHROMIUM, TCP)


@case
def chromium_calls_chromium_over_tls_where_only_port_443_is_open(rig: Rig) -> None:
    relayed_call(rig, CHROMIUM, CHROMIUM, TLS)


@case
def firefox_calls_chromium_over_udp_with_a_static_credential(rig: Rig) -> None:
    relayed_call(rig, FIREFOX, CHROMIUM, UDP, rig.server.static_credential())


@case
def firefox_calls_chromium_over_tcp_where_udp_is_blocked(rig: Rig) -> None:
    relayed_call(rig, FIREFOX, CHROMIUM, TCP)


@case
def firefox_calls_chromium_over_tls_where_only_port_443_is_open(rig: Rig) -> None:
    relayed_call(rig, FIREFOX, CHROMIUM, TLS)
