"""Settings of the tests: the demo's, on databases of their own."""

import os
import tempfile
from pathlib import Path
from typing import Any

from demo_project import settings as demo
from demo_project.settings import *  # noqa: F403
from tests import mysql, pgbouncer, postgresql

_directory = Path(tempfile.gettempdir())

_sqlite: dict[str, Any] = demo.DATABASES["default"]
DATABASES: dict[str, dict[str, Any]] = {  # type: ignore[no-redef]
    "default": {
        **_sqlite,
        # Seconds that a transaction waits for its turn: SQLite keeps no queue, and a busy machine
        # may hold one back longer than the five seconds of the default.
        "OPTIONS": {**_sqlite["OPTIONS"], "timeout": 60},
        # A file, not memory: threads and processes publish to it at once.
        "TEST": {"NAME": _directory / f"django-sse-test-{os.getpid()}.sqlite3"},
    },
}
if postgresql.binaries():
    # The server, and its port, are there once a test asks for it.
    DATABASES[postgresql.ALIAS] = {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": "postgres",
        "USER": "postgres",
        "HOST": "127.0.0.1",
    }
    # The same database through PgBouncer, whose port is set by the tests that start one.
    DATABASES[pgbouncer.ALIAS] = {
        **DATABASES[postgresql.ALIAS],
        "TEST": {"MIRROR": postgresql.ALIAS},
    }
if mysql.binaries():
    # Django's own driver, mysqlclient, has to be compiled.
    import pymysql

    pymysql.install_as_MySQLdb()
    DATABASES[mysql.ALIAS] = {
        "ENGINE": "django.db.backends.mysql",
        "NAME": "django_sse",
        "USER": "root",
        "HOST": "127.0.0.1",
    }

INSTALLED_APPS = [
    # For `runserver` alone; each process of the tests would import it.
    *(app for app in demo.INSTALLED_APPS if app != "daphne"),
    "django.contrib.admin",
    "django.contrib.messages",
    "rest_framework",
    "rest_framework.authtoken",
    "drf_spectacular",
]
# For the admin, and no other template has it.
SILENCED_SYSTEM_CHECKS = ["admin.E404", "admin.E409", "admin.W411"]
REST_FRAMEWORK = {"DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema"}
SIMPLE_JWT = {"SIGNING_KEY": "no secret, but as long as it has to be"}

# Django's name for it where a test's request does not say one.
ALLOWED_HOSTS = [*demo.ALLOWED_HOSTS, "unknown"]
# What the demo allows to other origins is not for the tests.
DJANGO_SSE: dict[str, Any] = {}  # type: ignore[no-redef]

ROOT_URLCONF = "tests.urls"
ASGI_APPLICATION = "tests.asgi.application"
