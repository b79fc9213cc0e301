"""npm packages that tests need, installed once."""

import os
import shutil
import subprocess
from pathlib import Path

from tests.live.servers import unavailable


def install(directory: Path) -> None:
    """Install what the ``package.json`` of a directory names, unless these versions are there.

    Skips the test without npm; on CI it has to be there.
    """
    if not shutil.which("npm"):
        unavailable("npm is not installed")
    wanted = (directory / "package.json").read_text()
    modules = directory / "node_modules"
    # A copy of the package.json that was installed; written last.
    installed = modules / "installed.json"
    if not installed.exists() or installed.read_text() != wanted:
        shutil.rmtree(modules, ignore_errors=True)
        options = ("--ignore-scripts", "--no-audit", "--no-fund", "--no-package-lock")
        subprocess.run(
            ["npm", "install", *options, "--loglevel=error"],
            cwd=directory,
            # npm leaves packages out for some values of it.
            env={name: value for name, value in os.environ.items() if name != "NODE_ENV"},
            timeout=300,
            check=True,
        )
        installed.write_text(wanted)
