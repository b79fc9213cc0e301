"""On django-tenants, with a schema of PostgreSQL for each tenant, in processes of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests import postgresql
from tests.live.servers import unavailable

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """A PostgreSQL server."""
    if not (directory := postgresql.binaries()):
        unavailable("PostgreSQL is not installed")
    with postgresql.serve(directory) as port:
        yield port


@pytest.fixture
def database(port: int) -> Iterator[dict[str, str]]:
    """A database without anything, as the settings of the project are told of it."""
    where = f"host=127.0.0.1 port={port} user=postgres dbname=postgres"
    with psycopg.connect(where, autocommit=True) as connection:
        connection.execute("CREATE DATABASE tenants")
        yield {"TENANTS_PORT": str(port), "TENANTS_DATABASE": "tenants"}
        connection.execute("DROP DATABASE tenants WITH (FORCE)")


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python in the project."""
    environment = {"DJANGO_SETTINGS_MODULE": "tests.tenants.settings", **environment}
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **environment},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def check(**environment: str) -> str:
    """Return what ``manage.py check`` says."""
    return run("manage.py", "check", **environment).stdout


@pytest.mark.once
@pytest.mark.timeout(300)
def test_tenants_are_kept_apart(database: dict[str, str]) -> None:
    options = ["-q", "-p", "no:cacheprovider", "--ds=tests.tenants.settings"]
    cases = run("-m", "pytest", *options, "tests/tenants/cases.py", **database)
    assert cases.returncode == 0, cases.stdout
    assert " passed" in cases.stdout


def test_nothing_is_wrong_with_tables_in_the_public_schema() -> None:
    assert "no issues" in check()
    assert "no issues" in check(TENANTS_TYPES="yes")


@pytest.mark.parametrize("tables", ["tenant", "both"])
@pytest.mark.parametrize("types", ["", "yes"])
def test_tables_elsewhere_than_in_the_public_schema_are_an_error(tables: str, types: str) -> None:
    said = check(TENANTS_TABLES=tables, TENANTS_TYPES=types)
    assert "(django_sse.E002) The tables of django_sse must be in the public schema" in said
    assert "SHARED_APPS and not in TENANT_APPS" in said


def test_a_store_without_tables_may_be_installed_anywhere() -> None:
    settings = json.dumps({"STORE": "redis"})
    assert "no issues" in check(TENANTS_TABLES="tenant", TENANTS_SETTINGS=settings)


def test_tenants_that_are_not_kept_apart_are_a_warning() -> None:
    said = check(TENANTS_SETTINGS=json.dumps({"NAMESPACE": None}))
    assert "(django_sse.W006) Tenants are not kept apart" in said


def test_a_namespace_without_the_context_of_a_tenant_is_a_warning() -> None:
    settings = {"NAMESPACE": "tests.tenants.settings.pk_of_tenant"}
    said = check(TENANTS_SETTINGS=json.dumps(settings))
    assert "(django_sse.W006) The users and sessions of open streams" in said


def test_tables_of_tenants_can_be_dropped_as_the_error_says(database: dict[str, str]) -> None:
    both = {**database, "TENANTS_TABLES": "both"}
    make = (
        "import django; django.setup()\n"
        "from django.core.management import call_command\n"
        "from tests.tenants.models import Estate\n"
        'call_command("migrate_schemas", schema_name="public", run_syncdb=True, verbosity=0)\n'
        'Estate(schema_name="north", name="north").save(verbosity=0)\n'
    )
    made = run("-c", make, **both)
    assert made.returncode == 0, made.stdout
    refused = run("manage.py", "migrate_schemas", **both)
    assert "django_sse.E002" in refused.stdout
    arguments = ["migrate_schemas", "--skip-checks", "--tenant", "django_sse", "zero"]
    dropped = run("manage.py", *arguments, **both)
    assert dropped.returncode == 0, dropped.stdout
    where = f"host=127.0.0.1 port={database['TENANTS_PORT']} user=postgres dbname=tenants"
    with psycopg.connect(where) as connection:
        tables = connection.execute(
            "SELECT DISTINCT schemaname FROM pg_tables WHERE tablename LIKE 'django_sse_%'"
        ).fetchall()
    assert tables == [("public",)]
