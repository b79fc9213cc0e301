import inspect
import pickle

import pytest
from django.utils.translation import gettext_lazy

from django_sse import exceptions
from django_sse.exceptions import (
    AlreadyProducing,
    Cancelled,
    Close,
    EventStreamError,
    GroupCancelled,
    InvalidEvent,
    InvalidGroup,
    PartlyPublished,
)


def test_there_is_one_base_and_few_leaves() -> None:
    defined = {
        value
        for _, value in inspect.getmembers(exceptions, inspect.isclass)
        if value.__module__ == exceptions.__name__
    }
    assert defined == {
        AlreadyProducing,
        Cancelled,
        Close,
        EventStreamError,
        GroupCancelled,
        InvalidEvent,
        InvalidGroup,
        PartlyPublished,
    }
    # `Close` is no error: who catches errors of the library must not catch it.
    assert {each for each in defined if not issubclass(each, EventStreamError)} == {Close}


def test_the_reason_of_a_close_is_text() -> None:
    assert Close("quota").reason == "quota"
    assert Close(gettext_lazy("Monday")).reason == "Monday"
    with pytest.raises(TypeError, match="has to be text, not int"):
        Close(7)  # type: ignore[arg-type]


@pytest.mark.parametrize("error", [InvalidEvent, InvalidGroup])
def test_what_is_wrong_with_a_value_is_a_value_error(error: type[Exception]) -> None:
    assert issubclass(error, ValueError)


def test_a_cancelled_group_is_no_value_error() -> None:
    assert not issubclass(GroupCancelled, ValueError)


def test_the_error_of_a_cancelled_group_names_both_ways_to_reopen_it() -> None:
    error = GroupCancelled("news")
    assert error.group == "news"
    assert str(error) == (
        "Group 'news' is cancelled, so nothing can be published to it. "
        "Call django_sse.reopen('news') (or `manage.py sse_reopen news`) first."
    )


def test_the_tree_at_the_top_of_the_module_is_the_tree() -> None:
    assert exceptions.__doc__
    for name, error in inspect.getmembers(exceptions, inspect.isclass):
        if error.__module__ == exceptions.__name__:
            assert name in exceptions.__doc__


def test_what_was_partly_published_is_told_by_a_process_of_a_pool_too() -> None:
    told = pickle.loads(pickle.dumps(PartlyPublished(["a", "a"], ["b"])))
    assert (told.published, told.failed) == (("a",), ("b",))
