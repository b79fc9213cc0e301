"""A page with a chat, made of the packages of Vercel's AI SDK."""

import subprocess
from functools import cache
from pathlib import Path

from tests import npm

_DIRECTORY = Path(__file__).parent


@cache
def bundle() -> str:
    """Return the script of the page; skip the test without npm."""
    npm.install(_DIRECTORY)
    command = ["node_modules/.bin/esbuild", "chat.js", "--bundle", "--minify", "--format=iife"]
    define = '--define:process.env.NODE_ENV="development"'
    return subprocess.run(
        [*command, define], cwd=_DIRECTORY, check=True, capture_output=True, text=True
    ).stdout
