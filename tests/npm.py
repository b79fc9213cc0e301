"""npm packages that tests need, installed once."""

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

from tests.live.servers import unavailable


def install(directory: Path) -> None:
    """Install what the ``package-lock.json`` of a directory names, unless that is there.

    Skips the test without npm; on CI it has to be there.

    Raises:
        CalledProcessError: npm fails, as it does for a package of another hash.
    """
    if not shutil.which("npm"):
        unavailable("npm is not installed")
    with (directory / "package-lock.json").open() as lock_file:
        # Another process may be installing them: `npm ci` begins by deleting what is there.
        fcntl.flock(lock_file, fcntl.LOCK_EX)
        wanted = lock_file.read()
        # A copy of the package-lock.json that was installed; written last.
        installed = directory / "node_modules" / "installed.json"
        if not installed.exists() or installed.read_text() != wanted:
            options = ("--ignore-scripts", "--no-audit", "--no-fund")
            subprocess.run(
                ["npm", "ci", *options, "--loglevel=error"],
                cwd=directory,
                # npm leaves packages out for some values of it.
                env={name: value for name, value in os.environ.items() if name != "NODE_ENV"},
                timeout=300,
                check=True,
            )
            installed.write_text(wanted)
