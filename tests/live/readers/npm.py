"""The npm packages of the matrix, installed once."""

import os
import shutil
import subprocess
from pathlib import Path

from tests.live.servers import unavailable

PACKAGE_JSON = Path(__file__).with_name("package.json")
NODE_MODULES = Path(__file__).with_name("node_modules")

# A copy of the package.json that was installed; written last.
_INSTALLED = NODE_MODULES / "installed.json"


def install() -> None:
    """Install the packages, unless these very versions are there; skip the test without npm."""
    if not shutil.which("npm"):
        unavailable("npm is not installed")
    wanted = PACKAGE_JSON.read_text()
    if _INSTALLED.exists() and _INSTALLED.read_text() == wanted:
        return
    shutil.rmtree(NODE_MODULES, ignore_errors=True)
    options = ("--ignore-scripts", "--no-audit", "--no-fund", "--no-package-lock")
    # Its own settings are none of the tests' business.
    environment = {key: value for key, value in os.environ.items() if key != "NODE_ENV"}
    subprocess.run(
        ["npm", "install", *options, "--loglevel=error"],
        cwd=PACKAGE_JSON.parent,
        env=environment,
        timeout=300,
        check=True,
    )
    _INSTALLED.write_text(wanted)
