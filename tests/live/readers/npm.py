"""The npm packages of the matrix."""

from pathlib import Path

from tests import npm

PACKAGE_JSON = Path(__file__).with_name("package.json")
NODE_MODULES = Path(__file__).with_name("node_modules")


def install() -> None:
    """Install the packages, unless these very versions are there; skip the test without npm."""
    npm.install(PACKAGE_JSON.parent)
