"""The credentials that the servers of this rig are given."""

import base64
import dataclasses
import hashlib
import hmac
import time

REALM = "ferry.test"
SHARED_SECRET = "0123456789abcdef0123456789abcdef"
LIFETIME_SECONDS = 3600


@dataclasses.dataclass(frozen=True)
class Credential:
    username: str
    password: str


ALICE = Credential("alice", "correct-horse-battery-staple-42")


def time_limited(name: str) -> Credential:
    """A credential of the TURN REST scheme: the username holds its expiry, the password its proof."""
    username = f"{int(time.time()) + LIFETIME_SECONDS}:{name}"
    proof = hmac.new(SHARED_SECRET.encode(), username.encode(), hashlib.sha1).digest()
    return Credential(username, base64.b64encode(proof).decode())
