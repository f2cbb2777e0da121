"""The register of test cases and what they are given."""

import dataclasses
import pathlib
from collections.abc import Callable

from .browser import Browsers
from .lab import Lab
from .server import Server


@dataclasses.dataclass
class Rig:
    """Everything a case may use; `directory` keeps what it writes if it fails."""

    lab: Lab
    server: Server
    browsers: Browsers
    directory: pathlib.Path


Case = Callable[[Rig], None]
CASES: dict[str, Case] = {}
# Of clients that `--clients` runs.
CLIENT_CASES: dict[str, Case] = {}


def case(function: Case) -> Case:
    """Registers a function under its name."""
    CASES[function.__name__] = function
    return function


def require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise AssertionError(otherwise)
