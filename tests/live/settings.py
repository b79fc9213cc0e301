"""Settings of the servers under test; what differs between them is in their environment."""

import json
import os
import sys
from typing import Any

from demo_project import settings as demo
from demo_project.settings import *  # noqa: F403

DEBUG = False
ROOT_URLCONF = os.environ.get("LIVE_URLCONF", "tests.urls")
INSTALLED_APPS = [*demo.INSTALLED_APPS, "tests.live.teams"]
# Each process imports its apps, which takes longer than all else for these two.
if "runserver" not in sys.argv:
    INSTALLED_APPS.remove("daphne")
if ROOT_URLCONF == "tests.live.api":
    INSTALLED_APPS.append("rest_framework")

SIMPLE_JWT = {"SIGNING_KEY": "no secret, but as long as it has to be"}

_sqlite: dict[str, Any] = demo.DATABASES["default"]
# Seconds that a transaction waits for its turn: see tests/settings.py.
_options = {**_sqlite["OPTIONS"], "timeout": 60}
DATABASES = {"default": {**_sqlite, "NAME": os.environ["LIVE_DATABASE"], "OPTIONS": _options}}
if "LIVE_DATABASES" in os.environ:
    DATABASES = json.loads(os.environ["LIVE_DATABASES"])
if "LIVE_CHANNEL_LAYERS" in os.environ:
    CHANNEL_LAYERS = json.loads(os.environ["LIVE_CHANNEL_LAYERS"])
DJANGO_SSE = json.loads(os.environ.get("LIVE_DJANGO_SSE", "{}"))
ASGI_APPLICATION = "tests.asgi.application"

# Everything live is behind compression, too, so that it never gets hold of a stream unnoticed.
MIDDLEWARE = ["django.middleware.gzip.GZipMiddleware", *demo.MIDDLEWARE]
if "LIVE_MIDDLEWARE" in os.environ:
    MIDDLEWARE.append(os.environ["LIVE_MIDDLEWARE"])

# What goes wrong in a server is in its output, which the tests show and look through.
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"console": {"class": "logging.StreamHandler"}},
    "root": {"handlers": ["console"], "level": "WARNING"},
}
