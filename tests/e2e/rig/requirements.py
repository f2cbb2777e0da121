"""Checks, before anything is touched, that the rig can run here."""

import os
import pathlib
import shutil
import subprocess

E2E = pathlib.Path(__file__).resolve().parent.parent
REPOSITORY = E2E.parent.parent

PACKAGE_OF_TOOL = {
    "chromium": "chromium",
    "turnutils_uclient": "coturn",
    "turnutils_peer": "coturn",
    "firefox-esr": "firefox-esr",
    "ip": "iproute2",
    "certutil": "libnss3-tools",
    "nft": "nftables",
    "node": "nodejs",
    "openssl": "openssl",
    "python3": "python3",
    "tcpdump": "tcpdump",
}


class RequirementError(Exception):
    """The machine lacks something; the text says what and how to get it."""


def check() -> None:
    """Raises `RequirementError` naming everything that is missing."""
    if os.geteuid() != 0:
        raise RequirementError("network namespaces need root: run as root")
    listed = set((E2E / "packages.txt").read_text().split())
    if listed != set(PACKAGE_OF_TOOL.values()):
        raise RequirementError("packages.txt and rig/requirements.py name different packages")
    missing = {tool: package for tool, package in PACKAGE_OF_TOOL.items() if not shutil.which(tool)}
    if missing:
        packages = " ".join(sorted(set(missing.values())))
        raise RequirementError(f"missing {', '.join(missing)}: apt-get install {packages}")


def install_node_modules() -> None:
    """Installs the pinned browser driver into node_modules unless it is there."""
    if (E2E / "node_modules" / "puppeteer-core" / "package.json").exists():
        return
    if not shutil.which("npm"):
        raise RequirementError("missing npm: Debian's package npm, or a nodejs package that contains it")
    print("installing node_modules with npm ci")
    result = subprocess.run(
        ["npm", "ci", "--no-audit", "--no-fund"], cwd=E2E, capture_output=True, text=True
    )
    if result.returncode != 0:
        raise RequirementError(f"npm ci failed:\n{result.stderr}")
