"""Each change has tests that are to notice it."""

from pathlib import Path

import django_sse
from tests.mutants.core import CORE, find_tests

PACKAGE = Path(django_sse.__file__).parent
TESTS = Path(__file__).parents[1]


def test_what_is_changed_and_the_tests_that_are_to_notice_exist() -> None:
    for part, tests in CORE.items():
        assert (PACKAGE / part).exists(), part
        assert [test for test in tests if not (TESTS / test).exists()] == [], part


def test_a_module_has_its_own_tests_before_those_of_its_folder() -> None:
    assert (
        find_tests("streaming/encoded_events.py")
        != find_tests("streaming/hub.py")
        == find_tests("streaming/stream.py")
    )
    assert "tests/streaming" in find_tests("streaming/hub.py")
