"""What is wrong with the database that the store is given, said by ``manage.py check``."""

import re
from collections.abc import Collection
from typing import Final

from django.apps import apps
from django.conf import settings
from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.db import connections, router

from django_sse.models import EventGroup
from django_sse.stores.database.connection import is_in_memory

# The databases that the tests run on (MariaDB stands for MySQL). Each locks differently.
_VENDORS: Final = {"sqlite": "SQLite", "postgresql": "PostgreSQL", "mysql": "MySQL or MariaDB"}


def refuse_schemas_of_tenants(using: str) -> None:
    """Refuse tables outside the public schema, since the store's threads have no tenant and
    would not read them.

    Raises:
        ImproperlyConfigured: django-tenants keeps the tables outside the public schema.
    """
    if not _has_schemas_of_tenants(using):
        return
    public, of_tenants = _apps_of_schemas()
    app = apps.get_app_config("django_sse")
    names = {app.name, f"{type(app).__module__}.{type(app).__qualname__}"}
    if names.isdisjoint(public) or not names.isdisjoint(of_tenants):
        raise ImproperlyConfigured(
            "The tables of django_sse must be in the public schema and in no other. Otherwise "
            "a tenant's events go to tables of that tenant, which nobody reads. List "
            '"django_sse" in SHARED_APPS and not in TENANT_APPS, and run `manage.py '
            "migrate_schemas --shared`. If tenants have the tables already, first drop them "
            "while django_sse is still in TENANT_APPS: `manage.py migrate_schemas "
            "--skip-checks --tenant django_sse zero`."
        )


def check_database(using: str, listen_alias: str) -> list[checks.CheckMessage]:
    """Return what ``manage.py check`` has to say of the store's aliases."""
    for option, alias in (("using", using), ("listen_alias", listen_alias)):
        if alias not in connections:
            return [
                checks.Error(
                    f"The database store uses the alias {alias!r}, which DATABASES lacks.",
                    hint=f"Set the option `{option}` to one of {', '.join(connections)}.",
                    id="django_sse.E003",
                )
            ]
    # The router of django-tenants answers for the current tenant's schema, for example in a
    # command.
    if not _has_schemas_of_tenants(using) and not router.allow_migrate_model(using, EventGroup):
        return [
            checks.Error(
                f"The database store uses the alias {using!r}, but a database router "
                "keeps the tables of django_sse away from it.",
                hint="Let the router migrate django_sse there, or name another alias: "
                'DJANGO_SSE = {"STORE": {"BACKEND": "database", "OPTIONS": {"using": ...}}}.',
                id="django_sse.E004",
            )
        ]
    vendor = connections[using].vendor
    if vendor not in _VENDORS:
        return [
            checks.Error(
                f"The database store does not support {vendor}, the database of the alias "
                f"{using!r}. It relies on locks and transactions, which were never tested "
                "there.",
                hint=f"Use {', '.join(_VENDORS.values())} for this alias in DATABASES.",
                id="django_sse.E006",
            )
        ]
    return _check_sqlite(using)


def _has_schemas_of_tenants(using: str) -> bool:
    if not apps.is_installed("django_tenants") or using not in connections:
        return False
    return hasattr(connections[using], "schema_name")


def _apps_of_schemas() -> tuple[Collection[str], Collection[str]]:
    """Return the apps of django-tenants' public schema, and the apps of all other schemas."""
    types = getattr(settings, "TENANT_TYPES", None)
    if not (types and getattr(settings, "HAS_MULTI_TYPE_TENANTS", False)):
        return getattr(settings, "SHARED_APPS", ()), getattr(settings, "TENANT_APPS", ())
    public = getattr(settings, "PUBLIC_SCHEMA_NAME", "public")
    others = {app for name, of_type in types.items() if name != public for app in of_type["APPS"]}
    return types[public]["APPS"], others


def _check_sqlite(using: str) -> list[checks.CheckMessage]:
    connection = connections[using]
    if connection.vendor != "sqlite" or is_in_memory(connection.settings_dict["NAME"]):
        return []
    options = connection.settings_dict.get("OPTIONS", {})
    wal = re.search(r"journal_mode\s*=\s*wal", options.get("init_command", ""), re.IGNORECASE)
    immediate = str(options.get("transaction_mode")).upper() in ("IMMEDIATE", "EXCLUSIVE")
    if wal and immediate:
        return []
    return [
        checks.Warning(
            f"SQLite on the alias {using!r} is not set to "
            f"{'WAL' if not wal else 'IMMEDIATE transactions'}: publishing from several "
            'threads or processes will fail with "database is locked".',
            hint='Set "OPTIONS": {"transaction_mode": "IMMEDIATE", '
            '"init_command": "PRAGMA journal_mode=WAL"} for this alias in DATABASES.',
            id="django_sse.W005",
        )
    ]
