"""The emoji packages on npm that the pictures and names come from."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Package:
    """A package at one version. ``upstream`` is the work that it contains, under ``licence``."""

    name: str
    version: str
    licence: str
    upstream: str
    used_for: str


PACKAGES = (
    Package("@lobehub/fluent-emoji-3d", "1.1.0", "MIT", "Microsoft's Fluent Emoji", "3D pictures"),
    Package("@iconify-json/fluent-emoji-flat", "1.2.6", "MIT", "Microsoft's Fluent Emoji", "flat pictures"),
    Package("@iconify-json/noto", "1.2.9", "Apache-2.0", "Google's Noto Emoji", "cartoon pictures"),
    Package("unicode-emoji-json", "0.9.0", "MIT", "unicode-emoji-json", "names"),
)


def fetch(folder: Path) -> dict[str, Path]:
    """Fetch and unpack packages that are missing.

    Returns:
        The folder of each package, by name.

    Raises:
        RuntimeError: npm cannot fetch a package, or its version or licence is not the expected one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return {package.name: _fetch(package, folder) for package in PACKAGES}


def _fetch(package: Package, folder: Path) -> Path:
    home = folder / f"{package.name.strip('@').replace('/', '-')}-{package.version}"
    archive = home.with_name(f"{home.name}.tgz")
    if not archive.exists():
        wanted = f"{package.name}@{package.version}"
        npm = shutil.which("npm")
        if npm is None:
            raise RuntimeError("npm, which fetches the packages, is not installed.")
        done = subprocess.run([npm, "pack", "--silent", wanted], cwd=folder, capture_output=True, text=True)
        if done.returncode or not archive.exists():
            raise RuntimeError(f"npm could not fetch {wanted}: {done.stderr.strip() or done.stdout.strip()}")
    if not home.exists():
        partial = home.with_name(f"{home.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        with tarfile.open(archive) as tar:
            tar.extractall(partial, filter="data")
        partial.rename(home)
    root = home / "package"
    described: dict[str, Any] = json.loads((root / "package.json").read_text(encoding="utf-8"))
    if (described["version"], described["license"]) != (package.version, package.licence):
        raise RuntimeError(f"{package.name} is {described['version']} under {described['license']}.")
    return root
