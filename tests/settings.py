"""Settings of the tests: the demo's, on a database of their own."""

import os
import tempfile
from pathlib import Path

from demo_project.settings import *  # noqa: F403

_directory = Path(tempfile.gettempdir())

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": _directory / f"django-sse-{os.getpid()}.sqlite3",
        "OPTIONS": {
            "transaction_mode": "IMMEDIATE",
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL",
        },
        # A file, not memory: threads and processes publish to it at once.
        "TEST": {"NAME": _directory / f"django-sse-test-{os.getpid()}.sqlite3"},
    },
}

ROOT_URLCONF = "tests.urls"
ASGI_APPLICATION = "tests.asgi.application"
