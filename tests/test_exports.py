import subprocess
import sys
from types import ModuleType

import pytest

import django_sse


def test_all_is_what_the_package_defines_and_imports() -> None:
    public = {
        name
        for name, value in vars(django_sse).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert set(django_sse.__all__) == public


def test_all_is_sorted_and_has_nothing_twice() -> None:
    assert django_sse.__all__ == sorted(set(django_sse.__all__))


def test_every_function_that_may_block_has_an_async_form() -> None:
    publishing = ("publish", "publish_many", "publish_template", "publish_to_user")
    for name in (*publishing, "cancel", "reopen", "position"):
        assert {name, f"a{name}"} <= set(django_sse.__all__)


@pytest.mark.parametrize("name", django_sse.__all__)
def test_it_says_what_it_is_for(name: str) -> None:
    value = getattr(django_sse, name)
    assert value.__doc__
    assert value.__module__.startswith("django_sse.")


def test_there_is_a_version() -> None:
    assert all(part.isdigit() for part in django_sse.__version__.split("."))


@pytest.mark.parametrize(
    "statement",
    [
        "import django_sse",
        "from django_sse.event import Event, Decoder; Decoder().feed(Event({'a': 1}).encode())",
        "import django_sse.asgi",
        "import django_sse.views, django_sse.decorators",
        "import sys; sys.modules['pytest'] = None; import django_sse.testing",
    ],
)
def test_it_needs_neither_settings_nor_apps_to_be_imported(statement: str) -> None:
    # As an asgi.py or a settings module imports it.
    subprocess.run([sys.executable, "-W", "error", "-c", statement], check=True, env={})
