"""Calls of other WebRTC stacks than the browsers' behind symmetric NATs: aiortc, werift, libwebrtc, GStreamer.

They take 150 MB to install, so they run by `--clients` alone, after clients/install.
"""

import os

from .browser import CHROMIUM
from .browser_cases import CONNECT_SECONDS, MESSAGES, TCP, TLS, UDP, Path, turn_server
from .cases import CLIENT_CASES, Rig, require
from .credentials import time_limited
from .lab import CLIENT_A, CLIENT_B, NAT_A, NAT_B
from .requirements import E2E, REPOSITORY, RequirementError
from .side import Call, Side

INSTALLED = REPOSITORY / "target/e2e-clients"
PROGRAMS = E2E / "clients"
COMMANDS = {
    "aiortc": [str(INSTALLED / "venv/bin/python"), str(PROGRAMS / "aiortc_side.py")],
    "werift": ["node", str(PROGRAMS / "node_side.cjs"), "werift"],
    "libwebrtc": ["node", str(PROGRAMS / "node_side.cjs"), "wrtc"],
    "gstreamer": ["/usr/bin/python3", str(PROGRAMS / "gstreamer_side.py")],
}
PATHS = {"udp": UDP, "tcp": TCP, "tls": TLS}
# libwebrtc trusts the authorities that it was built with, and no other. libnice has no TLS, and speaks plain TURN to
# a `turns:` server; port 443 of the rig answers TLS alone.
NO_TLS = ("libwebrtc", "gstreamer")
FRAMES = {"frames": 30}


def require_installed() -> None:
    """Raises `RequirementError` if the clients are not there."""
    if not (INSTALLED / "node_modules/werift").exists():
        raise RequirementError("the clients are not installed: tests/e2e/clients/install")


def start(kind: str, namespace: str, rig: Rig) -> Side:
    if kind == CHROMIUM:
        return rig.browsers.get(kind, namespace)
    authority = str(rig.browsers.certificates.authority)
    env = {**os.environ, "SSL_CERT_FILE": authority, "NODE_EXTRA_CA_CERTS": authority,
           "NODE_PATH": str(INSTALLED / "node_modules")}
    log = rig.directory / f"{kind}-{namespace}.log"
    return Side(f"{kind} in {namespace}", namespace, COMMANDS[kind], log, env)


def call_of(rig: Rig, caller: str, callee: str, path: Path) -> None:
    """A relay-only call with messages both ways, and audio where both are no browser."""
    for nat in (NAT_A, NAT_B):
        rig.lab.restrict(nat, path.restriction)
    sides = [start(caller, CLIENT_A, rig), start(callee, CLIENT_B, rig)]
    try:
        call = Call(*sides)
        configuration = {
            "iceServers": [turn_server(path.url, time_limited("client"))],
            "iceTransportPolicy": "relay",
        }
        media = CHROMIUM not in (caller, callee)
        for types in call.establish(configuration, media):
            require(set(types) == {"relay"}, f"candidates other than relay: {types}")
        states = call.both("outcome", seconds=CONNECT_SECONDS)
        require(states == ["connected", "connected"], f"connection states {states}")
        call.both("send", MESSAGES)
        call.both("receive", MESSAGES)
        if media:
            call.both("listen", FRAMES)
        call.both("close")
    finally:
        for kind, side in zip((caller, callee), sides):
            if kind != CHROMIUM:
                side.stop()


def register(caller: str, callee: str, way: str) -> None:
    CLIENT_CASES[f"{caller}_calls_{callee}_over_{way}"] = lambda rig: call_of(rig, caller, callee, PATHS[way])


for one in COMMANDS:
    for way_of_one in PATHS:
        if way_of_one != "tls" or one not in NO_TLS:
            register(one, one, way_of_one)
    if one != "gstreamer":
        # webrtcbin makes its data channel's transport with the audio that a browser's call here does not have.
        register(CHROMIUM, one, "udp")
register("aiortc", "gstreamer", "udp")
register("werift", "libwebrtc", "tcp")


def gstreamer_over_plain_turn_at_a_turns_url(rig: Rig) -> None:
    path = Path(TLS.url.replace(":443", ":5349"), PATHS["tcp"].restriction, "tcp")
    call_of(rig, "gstreamer", "gstreamer", path)


CLIENT_CASES["gstreamer_over_plain_turn_at_a_turns_url"] = gstreamer_over_plain_turn_at_a_turns_url
