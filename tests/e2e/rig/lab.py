"""The lab: two private networks behind symmetric NATs, a core router, a server and a peer.

    client-a -- nat-a \\             / server
                       core (router)
    client-b -- nat-b /             \\ peer

Every path between two of client, server and peer crosses at least one router that lowers the TTL.
"""

import os
import pathlib
import shutil
import signal
import subprocess

from .process import wait_until

CLIENT_A, CLIENT_B = "ferry-client-a", "ferry-client-b"
NAT_A, NAT_B = "ferry-nat-a", "ferry-nat-b"
CORE, SERVER, PEER = "ferry-core", "ferry-server", "ferry-peer"
NAMESPACES = [CLIENT_A, CLIENT_B, NAT_A, NAT_B, CORE, SERVER, PEER]

SERVER_NAME = "turn.ferry.test"
SERVER_V4, SERVER_V6 = "203.0.113.1", "2001:db8:1::1"
PEER_V4, PEER_V6 = "203.0.113.130", "2001:db8:2::2"

# (namespace, interface, addresses) of both ends of each link.
LINKS = [
    ((CLIENT_A, "lan", ["10.1.0.2/24", "fd00:1::2/64"]), (NAT_A, "lan", ["10.1.0.1/24", "fd00:1::1/64"])),
    ((CLIENT_B, "lan", ["10.2.0.2/24", "fd00:2::2/64"]), (NAT_B, "lan", ["10.2.0.1/24", "fd00:2::1/64"])),
    ((NAT_A, "wan", ["198.51.100.2/30", "2001:db8:a::2/64"]),
     (CORE, "nat-a", ["198.51.100.1/30", "2001:db8:a::1/64"])),
    ((NAT_B, "wan", ["198.51.100.6/30", "2001:db8:b::2/64"]),
     (CORE, "nat-b", ["198.51.100.5/30", "2001:db8:b::1/64"])),
    ((SERVER, "wan", [SERVER_V4 + "/25", SERVER_V6 + "/64"]),
     (CORE, "server", ["203.0.113.126/25", "2001:db8:1::ffff/64"])),
    ((PEER, "wan", [PEER_V4 + "/25", PEER_V6 + "/64"]),
     (CORE, "peer", ["203.0.113.254/25", "2001:db8:2::ffff/64"])),
]

DEFAULT_ROUTES = {
    CLIENT_A: ["10.1.0.1", "fd00:1::1"],
    CLIENT_B: ["10.2.0.1", "fd00:2::1"],
    NAT_A: ["198.51.100.1", "2001:db8:a::1"],
    NAT_B: ["198.51.100.5", "2001:db8:b::1"],
    SERVER: ["203.0.113.126", "2001:db8:1::ffff"],
    PEER: ["203.0.113.254", "2001:db8:2::ffff"],
}

# A random port per 5-tuple is an address- and port-dependent mapping (RFC 4787): a symmetric NAT.
NAT_RULES = """
table inet nat {
    chain postrouting {
        type nat hook postrouting priority srcnat
        oifname "wan" masquerade fully-random
    }
}
table inet inbound {
    chain input {
        type filter hook input priority filter
        iifname "wan" meta l4proto { tcp, udp } ct state != { established, related } drop
    }
    chain forward {
        type filter hook forward priority filter
        iifname "wan" ct state != { established, related } drop
    }
}
"""

# `ip netns exec` mounts what lies in ETC_NETNS/NAMESPACE over the same file in /etc. Nobody answers DNS
# on 127.0.0.1, so names that are not in the hosts file are refused at once.
ETC_NETNS = pathlib.Path("/etc/netns")
ETC_FILES = {
    "hosts": f"127.0.0.1 localhost\n::1 localhost\n{SERVER_V4} {SERVER_NAME}\n",
    "resolv.conf": "nameserver 127.0.0.1\n",
}

# What a client's network lets out, beyond the NAT.
OPEN = "accept"
NO_UDP = "meta l4proto udp drop"
ONLY_TCP_443 = "tcp dport != 443 drop; meta l4proto != tcp drop"


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def apply_rules(namespace: str, rules: str) -> None:
    """Loads nftables rules inside a namespace."""
    command = ["ip", "netns", "exec", namespace, "nft", "-f", "-"]
    result = subprocess.run(command, input=rules, capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"nft in {namespace}: {result.stderr}")


class Lab:
    """Builds the namespaces on `build` and removes them on `remove`; both may be repeated."""

    def build(self) -> None:
        self.remove()
        for namespace in NAMESPACES:
            ip("netns", "add", namespace)
            ip("-n", namespace, "link", "set", "lo", "up")
            (ETC_NETNS / namespace).mkdir(parents=True)
            for name, text in ETC_FILES.items():
                (ETC_NETNS / namespace / name).write_text(text)
        for one, other in LINKS:
            ip("link", "add", one[1], "netns", one[0], "type", "veth",
               "peer", "name", other[1], "netns", other[0])
            for namespace, interface, addresses in (one, other):
                for address in addresses:
                    options = ["nodad"] if ":" in address else []
                    ip("-n", namespace, "addr", "add", address, "dev", interface, *options)
                ip("-n", namespace, "link", "set", interface, "up")
        for namespace, gateways in DEFAULT_ROUTES.items():
            for gateway in gateways:
                ip("-n", namespace, "route", "add", "default", "via", gateway)
        for router in (CORE, NAT_A, NAT_B):
            self.enable_forwarding(router)
        for nat in (NAT_A, NAT_B):
            apply_rules(nat, NAT_RULES)

    def enable_forwarding(self, namespace: str) -> None:
        switches = "/proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding"
        ip("netns", "exec", namespace, "sh", "-c", f"echo 1 | tee {switches}")

    def restrict(self, nat: str, rule: str) -> None:
        """Lets only what `rule` permits out of the private network behind `nat`."""
        statements = "\n".join(f'iifname "lan" {part}' for part in rule.split("; "))
        apply_rules(nat, f"""
            table inet restrict
            delete table inet restrict
            table inet restrict {{
                chain forward {{
                    type filter hook forward priority 10
                    {statements}
                }}
            }}""")

    def open_all(self) -> None:
        for nat in (NAT_A, NAT_B):
            self.restrict(nat, OPEN)

    def remove(self) -> None:
        """Kills what runs in the lab's namespaces and deletes them."""
        existing = {entry.name for entry in pathlib.Path("/run/netns").glob("ferry-*")}
        ours = [namespace for namespace in NAMESPACES if namespace in existing]
        for namespace in ours:
            for pid in pids_in(namespace):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
        for namespace in ours:
            wait_until(lambda: not pids_in(namespace), 10, f"processes in {namespace} end")
            ip("netns", "del", namespace)
        for namespace in NAMESPACES:
            shutil.rmtree(ETC_NETNS / namespace, ignore_errors=True)


def pids_in(namespace: str) -> list[int]:
    """The processes whose network namespace is `namespace`; zombies have left it already."""
    result = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True)
    return [int(pid) for pid in result.stdout.split()]
