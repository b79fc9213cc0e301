import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.contrib.auth.models import User
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import connection
from pytest_django import Settings
from redis.exceptions import ConnectionError as RedisConnectionError

from django_sse import cancel, publish
from django_sse.access.owners import user_key
from django_sse.event import Decoder, Event
from django_sse.groups.position import parse_position
from django_sse.management.printer import Printer
from django_sse.stores import get_store
from tests.ports import free_port

pytestmark = pytest.mark.django_db(transaction=True)


def published_to(group: str) -> list[Event]:
    """Return the events that are kept of a group, without their ids."""

    async def read() -> list[bytes]:
        store = get_store()
        try:
            return [entry.wire for entry in await store.aread(group, 0, 1000)]
        finally:
            await store.aclose()

    return [event for wire in asyncio.run(read()) for event in Decoder().feed(wire)]


def head_of(group: str) -> int:
    return get_store().states([group])[group].head


def push(*args: str, **options: Any) -> str:
    output = StringIO()
    call_command("sse_push", *args, stdout=output, **options)
    return output.getvalue()


@pytest.fixture
def standard_input(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    def give(content: bytes) -> None:
        monkeypatch.setattr("sys.stdin", TextIOWrapper(BytesIO(content), encoding="utf-8"))

    return give


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


# sse_push


def test_an_event_is_pushed_and_its_id_is_told() -> None:
    output = push("news", "hi")
    assert published_to("news") == [Event("hi")]
    position = output.removeprefix("Published to news as ").removesuffix(".\n")
    assert parse_position(position, ["news"]) == {"news": head_of("news")}


def test_an_event_may_have_a_type() -> None:
    push("news", '{"title": "hi"}', "--event", "headline")
    assert published_to("news") == [Event('{"title": "hi"}', event="headline")]


def test_an_event_without_data_is_an_empty_text() -> None:
    push("news")
    assert published_to("news") == [Event("")]


def test_text_is_pushed_as_it_is() -> None:
    push("news", '{"title": ')
    assert published_to("news") == [Event('{"title": ')]


@pytest.mark.parametrize("data", ['{"title": "hi"}', "[1, 2]", "5", '"hi"', "null"])
def test_json_is_pushed_as_json(data: str) -> None:
    push("news", data, "--json")
    [event] = published_to("news")
    assert event.json() == json.loads(data)


@pytest.mark.parametrize("data", ["{'title': 'hi'}", "hi", "", "{", "1 2"])
def test_what_is_not_json_is_refused(data: str) -> None:
    with pytest.raises(CommandError, match=r"^Event 1 is not JSON: "):
        push("news", data, "--json")
    assert published_to("news") == []


@pytest.mark.parametrize("data", ["NaN", "[Infinity]", "1e999"])
def test_json_that_a_browser_does_not_read_is_refused(data: str) -> None:
    with pytest.raises(CommandError, match=r"^Event 1 is not JSON: "):
        push("news", data, "--json")


def test_only_the_id_is_printed_for_scripts() -> None:
    assert parse_position(push("news", "hi", "--id-only").rstrip("\n"), ["news"]) == {
        "news": head_of("news")
    }


def test_each_line_of_standard_input_is_an_event(
    standard_input: Callable[[bytes], None],
) -> None:
    standard_input("one\ntwo: Grüße\r\n\n  four  \nfive".encode())
    assert push("news", "-", "--event", "line") == "5 published.\n"
    assert published_to("news") == [
        Event(data, event="line") for data in ("one", "two: Grüße", "", "  four  ", "five")
    ]


def test_an_empty_standard_input_is_no_event(standard_input: Callable[[bytes], None]) -> None:
    standard_input(b"")
    assert push("news", "-") == "0 published.\n"
    assert published_to("news") == []


def test_the_ids_of_the_lines_of_standard_input_are_printed_a_line_each(
    standard_input: Callable[[bytes], None],
) -> None:
    standard_input(b"one\ntwo\nthree\n")
    ids = push("news", "-", "--id-only").splitlines()
    head = head_of("news")
    assert [parse_position(line, ["news"])["news"] for line in ids] == [head - 2, head - 1, head]


def test_the_line_of_standard_input_that_is_not_json_is_named(
    standard_input: Callable[[bytes], None],
) -> None:
    standard_input(b'{"a": 1}\n[2]\n{"a"\n4\n')
    with pytest.raises(CommandError, match=r"^Event 3 is not JSON: "):
        push("news", "-", "--json")
    # A line an event: those before it are published.
    assert published_to("news") == [Event('{"a":1}'), Event("[2]")]


def test_a_terminal_is_shown_the_progress(standard_input: Callable[[bytes], None]) -> None:
    standard_input(b"one\ntwo\n")
    terminal = Terminal()
    call_command("sse_push", "news", "-", stdout=terminal)
    assert terminal.getvalue() == "\r1 published\r2 published\r2 published.\n"


def test_standard_input_that_is_no_text_is_refused(
    standard_input: Callable[[bytes], None],
) -> None:
    standard_input(b"\xff\xfe\n")
    with pytest.raises(CommandError, match="is not text"):
        push("news", "-")
    assert published_to("news") == []


def test_a_store_that_nobody_else_sees_is_refused_with_what_to_configure(
    settings: Settings,
) -> None:
    settings.DJANGO_SSE = {"STORE": "memory"}
    with pytest.raises(CommandError, match=r'Set DJANGO_SSE = {"STORE": "database"}\.'):
        push("news", "hi")


def test_a_cancelled_group_is_refused_with_how_to_reopen_it() -> None:
    cancel("news")
    with pytest.raises(CommandError, match=r"^Event 1 was not published: .*sse_reopen news"):
        push("news", "hi")


@pytest.mark.parametrize("group", ["", "no name", "é", "x" * 100])
@pytest.mark.parametrize("command", ["sse_push", "sse_cancel", "sse_reopen"])
def test_a_bad_group_name_is_refused(command: str, group: str) -> None:
    with pytest.raises(CommandError, match="1 to 99 ASCII letters, digits, hyphens"):
        call_command(command, group)


@pytest.mark.parametrize("name", ["close", "error", "open", "reset"])
def test_a_name_that_is_not_free_is_refused(name: str) -> None:
    with pytest.raises(CommandError, match=f"'{name}' is not a name for an event"):
        push("news", "hi", "--event", name)


def test_an_event_that_is_too_large_is_refused(settings: Settings) -> None:
    settings.DJANGO_SSE = {"MAX_EVENT_BYTES": 20}
    with pytest.raises(CommandError, match="MAX_EVENT_BYTES"):
        push("news", "x" * 20)


# sse_cancel and sse_reopen


def test_a_group_is_cancelled_and_reopened() -> None:
    publish("news", "before")
    output = StringIO()
    call_command("sse_cancel", "news", "--reason", "over", stdout=output)
    assert get_store().states(["news"])["news"].cancelled
    assert published_to("news") == [Event("before"), Event('{"reason":"over"}', event="close")]
    call_command("sse_reopen", "news", stdout=output)
    assert not get_store().states(["news"])["news"].cancelled
    assert output.getvalue() == "Cancelled news.\nReopened news.\n"
    push("news", "after")
    assert published_to("news")[-1] == Event("after")


def test_a_group_is_cancelled_without_a_reason() -> None:
    call_command("sse_cancel", "news", stdout=StringIO())
    assert published_to("news") == [Event('{"reason":null}', event="close")]


def test_a_users_streams_are_cancelled() -> None:
    User.objects.create(pk=7)
    output = StringIO()
    call_command("sse_cancel", "--user", "7", "--reason", "over", stdout=output)
    call_command("sse_cancel", "news", "--user", "7", stdout=output)
    assert output.getvalue() == (
        "Cancelled the streams of user 7.\nCancelled the streams of user 7 in news.\n"
    )
    marks = [user_key(7), user_key(7, "news")]
    assert all(state.first for state in get_store().states(marks).values())
    assert not get_store().states(["news"])["news"].cancelled
    call_command("sse_reopen", "--user", "07", stdout=output)
    call_command("sse_reopen", "news", "--user", "7", stdout=output)
    assert output.getvalue().endswith(
        "Reopened the streams of user 07.\nReopened the streams of user 7 in news.\n"
    )
    assert not any(state.cancelled for state in get_store().states(marks).values())


@pytest.mark.parametrize("command", ["sse_cancel", "sse_reopen"])
@pytest.mark.parametrize("nobody", ["8", "ada", ""])
def test_a_user_who_is_not_there_is_an_error_unless_it_is_one_of_other_means(
    command: str, nobody: str
) -> None:
    User.objects.create(pk=7, username="ada")
    with pytest.raises(CommandError, match=f"no user with the primary key '{nobody}'.*--force"):
        call_command(command, "--user", nobody)
    assert not get_store().states([user_key(nobody)])[user_key(nobody)].head
    call_command(command, "--user", nobody, "--force", stdout=StringIO())
    assert get_store().states([user_key(nobody)])[user_key(nobody)].cancelled == (
        command == "sse_cancel"
    )


def test_nothing_to_cancel_is_refused() -> None:
    with pytest.raises(CommandError, match="Name a group, or give --user"):
        call_command("sse_cancel")


@pytest.mark.parametrize("command", ["sse_cancel", "sse_reopen"])
def test_a_command_that_nobody_else_sees_is_refused_with_what_to_configure(
    settings: Settings, command: str
) -> None:
    settings.DJANGO_SSE = {"STORE": "memory"}
    with pytest.raises(CommandError, match=r'Set DJANGO_SSE = {"STORE": "database"}\.'):
        call_command(command, "news", stdout=StringIO())


# sse_listen


def test_who_publishes_once_a_listener_has_said_that_it_listens_is_heard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    note = Printer.note

    def publish_meanwhile() -> None:
        try:
            publish("news", "at the note")
        finally:
            cancel("news")
            connection.close()

    def note_and_publish(printer: Printer, text: str) -> None:
        note(printer, text)
        if not notes:
            notes.append(text)
            publisher = Thread(target=publish_meanwhile)
            publisher.start()
            publisher.join()

    notes: list[str] = []
    monkeypatch.setattr(Printer, "note", note_and_publish)
    output = StringIO()
    call_command("sse_listen", "news", stdout=output, stderr=StringIO())
    assert "at the note" in output.getvalue()


# A store that is away


@pytest.mark.parametrize(
    "command",
    [
        "sse_push news hi",
        "sse_cancel news",
        "sse_cancel --user 7 --force",
        "sse_reopen news",
        "sse_status --wait 0.1",
        "sse_listen news",
    ],
)
def test_a_redis_that_is_away_is_one_line(settings: Settings, command: str) -> None:
    options = {"url": f"redis://127.0.0.1:{free_port()}/0"}
    settings.DJANGO_SSE = {"STORE": {"BACKEND": "redis", "OPTIONS": options}}
    with pytest.raises(CommandError) as raised:
        call_command(*command.split())
    said = str(raised.value)
    assert said.startswith("The event store does not work: ConnectionError: Error 111 connecting")
    assert "\n" not in said
    assert isinstance(raised.value.__cause__, RedisConnectionError)


def test_the_event_of_standard_input_that_was_lost_is_named(
    standard_input: Callable[[bytes], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    append = get_store().append

    def fail_at_the_second(entries: Any, ring: Any) -> Any:
        if b"two" in entries[0].wire:
            raise ConnectionResetError("gone")
        return append(entries, ring)

    monkeypatch.setattr(get_store(), "append", fail_at_the_second)
    standard_input(b"one\ntwo\nthree\n")
    with pytest.raises(CommandError, match=r"ResetError: gone Event 2 may not have been published"):
        push("news", "-")


# As it is typed


def manage(*args: str, input: str = "") -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "demo_project.settings",
        "DEMO_DATABASE": str(connection.settings_dict["NAME"]),
    }
    return subprocess.run(
        [sys.executable, "manage.py", *args],
        cwd=django_settings.BASE_DIR,
        env=environment,
        input=input,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_pipe_is_pushed_by_another_process_with_exit_codes_for_scripts() -> None:
    pushed = manage("sse_push", "news", "-", "--json", "--id-only", input='{"a": 1}\n2\n')
    assert (pushed.returncode, pushed.stderr) == (0, "")
    head = head_of("news")
    ids = pushed.stdout.splitlines()
    assert [parse_position(line, ["news"]) for line in ids] == [
        {"news": head - 1},
        {"news": head},
    ]
    assert published_to("news") == [Event('{"a":1}'), Event("2")]

    refused = manage("sse_push", "news", "-", "--json", input="3\nno JSON\n")
    assert refused.returncode == 1
    assert refused.stderr.startswith("CommandError: Event 2 is not JSON: ")
    assert "Traceback" not in refused.stderr

    assert manage("sse_push").returncode == 2


@pytest.mark.once
@pytest.mark.parametrize("command", ["sse_listen news", "sse_token list"])
def test_a_database_that_is_away_is_one_line_and_an_exit_code_for_scripts(
    command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(connection.settings_dict, "NAME", str(tmp_path / "missing" / "database"))
    failed = manage(*command.split())
    assert (failed.returncode, failed.stdout, failed.stderr) == (
        1,
        "",
        "CommandError: The database does not work: OperationalError: unable to open database "
        "file\n",
    )
