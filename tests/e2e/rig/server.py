"""The server under test: one small adapter per implementation."""

import abc
import os
import pathlib
import signal
import sys

from . import stun
from .certificates import Certificates
from .credentials import ALICE, REALM, SHARED_SECRET, Credential, time_limited
from .lab import PEER, SERVER, SERVER_V4, SERVER_V6
from .process import Program, run_in, wait_until
from .requirements import REPOSITORY, RequirementError

STUN_PORT, TLS_PORT, HTTPS_PORT = 3478, 5349, 443
METRICS = "127.0.0.1:9641"
READY_SECONDS = 30


class Server(abc.ABC):
    """A TURN server in the server namespace, logging to `log`."""

    name: str

    def __init__(self, directory: pathlib.Path, certificates: Certificates):
        self.directory = directory
        self.certificates = certificates
        self.log = directory / "server.log"
        self.log_bytes_read = 0
        self.program: Program | None = None
        # What carries open channels, for a server that has a choice.
        self.offload = "off"
        # Listeners beside the usual ones, in the words of ferryd's configuration.
        self.more_listeners = ""

    @classmethod
    def require_installed(cls) -> None:
        """Raises `RequirementError` if the program is not there."""

    @abc.abstractmethod
    def write_config(self) -> list[str]:
        """Writes the configuration; returns the command that runs the server."""

    def static_credential(self) -> Credential:
        """A long-term credential from the configuration, where secrets can stand beside it."""
        return ALICE

    def start(self) -> None:
        """Returns when every listener answers."""
        self.program = Program(SERVER, self.write_config(), self.log)
        wait_until(self.answers_udp, READY_SECONDS, f"{self.name} answers STUN on UDP")
        for port in (STUN_PORT, TLS_PORT, HTTPS_PORT):
            wait_until(lambda: self.accepts_tcp(port), READY_SECONDS, f"{self.name} accepts TCP on {port}")

    def stop(self) -> None:
        if self.program:
            self.program.stop()

    def is_running(self) -> bool:
        return self.program is not None and self.program.is_running()

    def answers_udp(self) -> bool:
        self.require_running()
        try:
            binding_from(PEER, SERVER_V4, seconds=1)
            return True
        except RuntimeError:
            return False

    def accepts_tcp(self, port: int) -> bool:
        self.require_running()
        connect = f"import socket; socket.create_connection(({SERVER_V4!r}, {port}), 2)"
        try:
            run_in(PEER, [sys.executable, "-c", connect])
            return True
        except RuntimeError:
            return False

    def require_running(self) -> None:
        if not self.is_running():
            raise RuntimeError(f"{self.name} does not run, see {self.log}:\n{tail(self.log)}")

    def require_offload(self) -> None:
        """Raises if the kernel path is not as it is forced on the run."""

    def require_no_panic(self) -> None:
        """Raises if a thread has panicked since the last call, which a daemon may survive unnoticed."""
        news = self.log.read_bytes()[self.log_bytes_read :]
        self.log_bytes_read += len(news)
        if b"panicked at" in news:
            raise RuntimeError(f"{self.name} panicked, see {self.log}")


class Ferryd(Server):
    """The product. FERRYD_BIN names another binary than target/release/ferryd."""

    name = "ferryd"
    binary = pathlib.Path(os.environ.get("FERRYD_BIN", REPOSITORY / "target/release/ferryd")).absolute()

    @classmethod
    def require_installed(cls) -> None:
        if not os.access(cls.binary, os.X_OK):
            raise RequirementError(f"no {cls.binary}: cargo build --release, or set FERRYD_BIN")

    def write_config(self) -> list[str]:
        config = self.directory / "ferryd.toml"
        config.write_text(f"""\
realm = "{REALM}"
listener = [
  {{ address = "{SERVER_V4}:{STUN_PORT}", transport = "udp" }},
  {{ address = "[{SERVER_V6}]:{STUN_PORT}", transport = "udp" }},
  {{ address = "{SERVER_V4}:{STUN_PORT}", transport = "tcp" }},
  {{ address = "{SERVER_V4}:{TLS_PORT}", transport = "tcp" }},
  {{ address = "{SERVER_V4}:{TLS_PORT}", transport = "udp", accept = "dtls" }},
  {{ address = "{SERVER_V4}:{HTTPS_PORT}", transport = "tcp", accept = "tls" }},
{self.more_listeners}]
[tls]
certificate = "{self.certificates.certificate}"
key = "{self.certificates.key}"
[relay]
addresses = ["{SERVER_V4}", "{SERVER_V6}"]
[auth]
shared-secrets = ["{SHARED_SECRET}"]
[[auth.user]]
name = "{ALICE.username}"
password = "{ALICE.password}"
[peers]
# The lab lives in documentation and private ranges, which are refused by default.
allow = ["203.0.113.0/24", "198.51.100.0/24", "10.0.0.0/8", "2001:db8::/32"]
[extensions]
tcp-allocations = true
[metrics]
address = "{METRICS}"
[data-path]
offload = "{self.offload}"
[compatibility]
# turnutils_uclient binds channels up to 0x7FFF.
channels-above-4fff = true
""")
        # ferryd takes every FERRYD_ variable for a setting.
        return ["env", "-u", "FERRYD_BIN", str(self.binary), "--config", str(config)]

    def reload(self) -> None:
        """Has it read its configuration again, as it is to be by now."""
        said = "configuration read again"
        before = self.log.read_text().count(said)
        self.write_config()
        self.program.signal_group(signal.SIGHUP)
        wait_until(lambda: self.log.read_text().count(said) > before, READY_SECONDS, "the reload")

    def require_offload(self) -> None:
        """Raises unless what is forced on the run takes the packets, and has not been given up."""
        methods = {"tc": "tcx", "xdp": "xdp"}
        if self.offload != "off" and not self.is_carried_by(methods[self.offload]):
            raise RuntimeError(f"not {self.offload} carries the calls, see {self.log}")

    def is_carried_by(self, method: str, interface: str = "wan") -> bool:
        return f'ferryd_offload_interfaces{{interface="{interface}",method="{method}"}}' in self.metrics()

    def metrics(self) -> dict[str, float]:
        """Every series of the metrics page, by its name with its labels."""
        fetch = f"import urllib.request; print(urllib.request.urlopen('http://{METRICS}/metrics', timeout=5).read().decode())"
        page = run_in(SERVER, [sys.executable, "-c", fetch])
        lines = [line.rsplit(" ", 1) for line in page.splitlines() if line and not line.startswith("#")]
        return {name: float(value) for name, value in lines}


class Coturn(Server):
    """Debian's turnserver: the peer that validates the rig itself."""

    name = "coturn"

    def write_config(self) -> list[str]:
        config = self.directory / "turnserver.conf"
        config.write_text(f"""\
realm={REALM}
listening-ip={SERVER_V4}
listening-ip={SERVER_V6}
relay-ip={SERVER_V4}
relay-ip={SERVER_V6}
listening-port={STUN_PORT}
tls-listening-port={TLS_PORT}
aux-server={SERVER_V4}:{HTTPS_PORT}
cert={self.certificates.certificate}
pkey={self.certificates.key}
use-auth-secret
static-auth-secret={SHARED_SECRET}
fingerprint
no-cli
no-software-attribute
verbose
log-file=stdout
pidfile={self.directory}/turnserver.pid
userdb={self.directory}/turndb
""")
        return ["turnserver", "-c", str(config)]

    def static_credential(self) -> Credential:
        return time_limited("alice")


SERVERS = {adapter.name: adapter for adapter in (Ferryd, Coturn)}


def binding_from(namespace: str, address: str, port: int = STUN_PORT, seconds: float = 10) -> str:
    """The mapped address that the server sees of a client in `namespace`."""
    return run_in(namespace, [sys.executable, stun.__file__, address, str(port), str(seconds)]).strip()


def tail(log: pathlib.Path, lines: int = 15) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
