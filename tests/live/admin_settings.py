"""Settings of servers with Django's admin."""

from typing import Any

from demo_project import settings as demo
from tests.live import settings as live
from tests.live.settings import *  # noqa: F403

INSTALLED_APPS = [*live.INSTALLED_APPS, "django.contrib.admin", "django.contrib.messages"]
MIDDLEWARE = [*live.MIDDLEWARE, "django.contrib.messages.middleware.MessageMiddleware"]
_template: dict[str, Any] = demo.TEMPLATES[0]
_processors = [
    *_template["OPTIONS"]["context_processors"],
    "django.contrib.messages.context_processors.messages",
]
TEMPLATES = [{**_template, "OPTIONS": {"context_processors": _processors}}]
ROOT_URLCONF = "tests.admin_site"
