"""Its settings, on a database of which the environment says where it is, and what is set."""

import json
import os
from typing import Any

from demo_project.settings import *  # noqa: F403

# Where the tables of django_sse are: in the public schema, in those of tenants, or in both.
_TABLES = os.environ.get("TENANTS_TABLES", "shared")

_OF_BOTH = ["django.contrib.contenttypes", "django.contrib.auth", "django.contrib.sessions"]
SHARED_APPS = ["django_tenants", "tests.tenants", *_OF_BOTH]
TENANT_APPS = [*_OF_BOTH]
if _TABLES in ("shared", "both"):
    SHARED_APPS += ["django_sse.apps.DjangoSSEConfig"]
if _TABLES in ("tenant", "both"):
    TENANT_APPS += ["django_sse"]
INSTALLED_APPS = [*SHARED_APPS]
if _TABLES == "tenant":
    INSTALLED_APPS += ["django_sse"]
if os.environ.get("TENANTS_TYPES"):
    HAS_MULTI_TYPE_TENANTS = True
    MULTI_TYPE_DATABASE_FIELD = "kind"
    TENANT_TYPES = {
        "public": {"APPS": SHARED_APPS, "URLCONF": "tests.tenants.urls"},
        "house": {"APPS": TENANT_APPS, "URLCONF": "tests.tenants.urls"},
    }

TENANT_MODEL = "tenants.Estate"
TENANT_DOMAIN_MODEL = "tenants.Domain"
DATABASE_ROUTERS = ["django_tenants.routers.TenantSyncRouter"]
DATABASES: dict[str, dict[str, Any]] = {  # type: ignore[no-redef]
    "default": {
        "ENGINE": "django_tenants.postgresql_backend",
        "NAME": os.environ.get("TENANTS_DATABASE", "tenants"),
        "USER": "postgres",
        "HOST": "127.0.0.1",
        "PORT": os.environ.get("TENANTS_PORT", "5432"),
    }
}

# Users are made for each test.
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]

ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "tests.tenants.urls"
ASGI_APPLICATION = "tests.asgi.application"
MIDDLEWARE = [
    "django_tenants.middleware.main.TenantMainMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
]
DJANGO_SSE: dict[str, Any] = {  # type: ignore[no-redef]
    "SYNC_INTERVAL": 0.05,
    "RECHECK_INTERVAL": 1,
    **json.loads(os.environ.get("TENANTS_SETTINGS", "{}")),
}


def pk_of_tenant() -> str:
    """What a project may name its tenants by."""
    return "7"
