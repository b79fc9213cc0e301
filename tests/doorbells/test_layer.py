"""Doorbells over the channel layer."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from threading import Thread
from typing import Any, cast

import pytest
from channels.layers import get_channel_layer
from django.conf import settings as django_settings
from django.db import connection
from django.test import override_settings
from pytest_django import Settings

from django_sse.access.owners import user_key
from django_sse.doorbells import doorbell_of
from django_sse.doorbells.layer import LayerDoorbell, doorbell_group, from_message, to_message
from django_sse.groups.entries import Entry, Hint
from django_sse.groups.names import validate_group
from django_sse.stores import get_store
from tests.doorbells.conftest import Ear, hint
from tests.failures import Panic
from tests.layers import GatedLayer
from tests.streams import until

NO_ENTRIES = Hint("news", 7, cancelled=False)


def ring(hints: Sequence[Hint]) -> None:
    doorbell_of(get_store()).ring(hints)


@pytest.fixture
def layer(settings: Settings) -> GatedLayer:
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": "tests.layers.GatedLayer"}}
    return cast("GatedLayer", get_channel_layer())


def hints_sent(layer: GatedLayer) -> list[Hint]:
    return [from_message(message) for _, message in layer.sent]


# Messages


@pytest.mark.parametrize(
    "hint",
    [
        NO_ENTRIES,
        hint(1_800_000_000_000_000, 1_800_000_000_000_001),
        hint(7, 8, cancelled=True),
        Hint("news", 8, cancelled=True),
        Hint("news", 7, False, (Entry(7, "event: grüße\ndata: 😀\u2028\0\n\n".encode()),)),
    ],
)
def test_a_message_carries_a_hint_through_any_serializer(hint: Hint) -> None:
    message = to_message(hint)
    assert message["type"] == "sse.doorbell"
    assert from_message(json.loads(json.dumps(message))) == hint


def test_without_a_secret_key_a_message_wakes_and_carries_nothing() -> None:
    """As in the settings of a worker, which may have none."""
    with override_settings(SECRET_KEY=""):
        message = to_message(hint(7))
    assert from_message(message) == Hint("news", 7, cancelled=False)


def test_entries_too_large_for_a_message_are_left_to_the_store() -> None:
    filling = Entry(7, b"data:%s\n\n" % (b"x" * (64 * 1024 - 7)))
    assert from_message(to_message(Hint("news", 7, False, (filling,)))).entries == (filling,)
    large = (Entry(7, b"data:x\n\n"), Entry(8, filling.wire))
    assert from_message(to_message(Hint("news", 8, False, large))) == Hint("news", 8, False)


@pytest.mark.parametrize(
    "fields",
    [
        {"group": None},
        {"group": ["news"]},
        {"group": "no group"},
        {"head": "8"},
        {"head": None},
        {"head": float("nan")},
        {"head": True},
        {"cancelled": None},
    ],
)
async def test_a_message_that_is_no_doorbell_is_ignored_and_the_next_one_is_heard(
    fields: dict[str, Any],
    ear: Ear,
    settings: Settings,
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": "tests.layers.OwnInMemoryLayer"}}
    layer = get_channel_layer()
    receiver = LayerDoorbell(layer).receiver(ear)
    await receiver.enter("news")
    message = to_message(hint(7))
    await layer.group_send(doorbell_group("news"), {"type": "sse.doorbell"})
    await layer.group_send(doorbell_group("news"), {**message, **fields})
    await layer.group_send(doorbell_group("news"), message)
    await until(lambda: ear.heard)
    await receiver.close()
    assert ear.heard == [hint(7)]
    # Seldom, however many come.
    assert [record.levelname for record in caplog.records] == ["WARNING"]


@pytest.mark.parametrize(
    "fields",
    [
        {"signature": None},
        {"signature": ""},
        {"signature": "é"},
        {"signature": 7},
        {"signature": "0" * 64},
        {"group": "jobs"},
        {"head": 8},
        {"cancelled": True},
        {"entries": None},
        {"entries": 8},
        {"entries": [8]},
        {"entries": [[7, "data: y\n\n", False, ""]]},
        {"entries": [[7, "id: 1\nevent: close\ndata: 7\n\n", True, ""]]},
        {"entries": [[7, "data: \ud800\n\n", False, ""]]},
    ],
)
def test_what_is_not_signed_as_it_is_wakes_and_brings_nothing(fields: dict[str, Any]) -> None:
    message = to_message(hint(7)) | fields
    if fields == {"signature": None}:
        del message["signature"]
    heard = from_message(message)
    assert heard.entries == ()
    assert (heard.group, heard.head) == (message["group"], message["head"])


@pytest.mark.parametrize(
    "wire",
    [
        b"",
        b"\n",
        b"data: x\n",
        b"data: x\n\ndata: y\n\n",
        b"\ndata: x\n\n",
        b"id: 1\ndata: x\n\n",
        b"data: x\nid\n\n",
        b"data: x\r\rid: 1\n\n",
    ],
)
def test_what_is_no_single_event_without_an_id_is_no_doorbell(wire: bytes) -> None:
    with pytest.raises(ValueError, match="not a valid event"):
        from_message(to_message(Hint("news", 7, False, (Entry(7, wire),))))


def test_what_a_key_of_before_has_signed_is_brought(settings: Settings) -> None:
    settings.SECRET_KEY = "before"
    message = to_message(hint(7))
    settings.SECRET_KEY = "now"
    assert from_message(message) == NO_ENTRIES
    settings.SECRET_KEY_FALLBACKS = ["long ago", "before"]
    assert from_message(message) == hint(7)


def test_doorbells_have_groups_of_their_own() -> None:
    longest = "x" * 99
    groups = {doorbell_group(group) for group in ("news", "News", "jobs", longest)}
    assert len(groups) == 4
    assert all(validate_group(group).startswith("sse.") for group in groups)
    assert doorbell_group("news") == doorbell_group("news")
    assert "news" not in groups


# Other processes


async def test_other_processes_are_told_in_the_group_of_doorbells(
    ear: Ear, layer: GatedLayer
) -> None:
    ring([hint(7), hint(8, group="jobs")])
    await until(lambda: len(layer.sent) == 2)
    assert [group for group, _ in layer.sent] == [doorbell_group("news"), doorbell_group("jobs")]
    assert hints_sent(layer) == [hint(7), hint(8, group="jobs")]


async def test_any_thread_may_ring(ear: Ear, layer: GatedLayer) -> None:
    thread = Thread(target=ring, args=[[hint(7)]])
    thread.start()
    await asyncio.to_thread(thread.join)
    await until(lambda: layer.sent)
    assert ear.heard == hints_sent(layer) == [hint(7)]


async def pile_up(layer: GatedLayer, *hints: Hint) -> list[Hint]:
    """Ring while the layer is busy, and return what it is given when it is free again."""
    layer.gate.clear()
    ring([hint(1, group="busy")])
    await until(lambda: layer.sending)
    for one in hints:
        ring([one])
    ring([hint(1, group="last")])
    layer.gate.set()
    await until(lambda: doorbell_group("last") in dict(layer.sent))
    return hints_sent(layer)[1:-1]


@pytest.mark.usefixtures("ear")
async def test_what_piles_up_for_a_group_is_one_message(layer: GatedLayer) -> None:
    assert await pile_up(layer, hint(7), hint(8, 9), hint(3, group="jobs"), hint(10)) == [
        hint(7, 8, 9, 10),
        hint(3, group="jobs"),
    ]


@pytest.mark.usefixtures("ear")
async def test_a_kick_is_told_before_what_was_published_after_it(layer: GatedLayer) -> None:
    kick = Hint(user_key(7), 5, cancelled=True)
    assert await pile_up(layer, hint(7), kick, hint(8)) == [kick, hint(7, 8)]


@pytest.mark.usefixtures("ear")
async def test_one_message_without_its_entries_leaves_the_store_to_be_read(
    layer: GatedLayer,
) -> None:
    assert await pile_up(layer, hint(6), NO_ENTRIES, hint(8)) == [Hint("news", 8, False)]


@pytest.mark.usefixtures("ear")
async def test_entries_that_become_too_many_are_left_to_the_store(layer: GatedLayer) -> None:
    half = b"data: %s\n\n" % (b"x" * 40 * 1024)
    hints = [Hint("news", number, False, (Entry(number, half),)) for number in (7, 8)]
    assert await pile_up(layer, *hints) == [Hint("news", 8, False)]


@pytest.mark.usefixtures("ear")
async def test_a_doorbell_that_overtook_another_does_not_take_the_head_back(
    layer: GatedLayer,
) -> None:
    [merged] = await pile_up(layer, hint(9, cancelled=True), hint(8))
    assert (merged.head, merged.cancelled) == (9, True)


@pytest.mark.usefixtures("ear")
async def test_a_cancel_and_what_came_before_it_are_one_message(layer: GatedLayer) -> None:
    assert await pile_up(layer, hint(7), hint(8, cancelled=True)) == [hint(7, 8, cancelled=True)]


@pytest.mark.usefixtures("ear")
async def test_a_cancel_and_the_reopening_after_it_are_a_reopening(layer: GatedLayer) -> None:
    # A reopening takes no number, so both have the same head.
    reopened = Hint("news", 8, cancelled=False)
    assert await pile_up(layer, hint(8, cancelled=True), reopened) == [reopened]


@pytest.mark.usefixtures("ear")
@pytest.mark.parametrize("kind", [ConnectionError, Panic])
async def test_a_doorbell_that_is_lost_is_logged_and_the_next_one_rings(
    kind: type[BaseException], layer: GatedLayer, caplog: pytest.LogCaptureFixture
) -> None:
    layer.failures.append(kind("The layer is down."))
    ring([hint(7), hint(8, group="jobs")])
    await until(lambda: layer.sent)
    assert hints_sent(layer) == [hint(8, group="jobs")]
    assert "The doorbell of group 'news' was lost." in caplog.text
    assert "The layer is down." in caplog.text


# A process without a hub

PUBLISHER = """
import os
import sys

import django
from django.conf import settings

database, messages, delay = sys.argv[1:]
settings.configure(
    SECRET_KEY="only for the demo",
    INSTALLED_APPS=["django_sse"],
    USE_TZ=True,
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": database}},
    CHANNEL_LAYERS={
        "default": {
            "BACKEND": "tests.layers.FileLayer",
            "CONFIG": {"path": messages, "delay": float(delay)},
        }
    },
)
django.setup()

from django.db import connection
from django_sse import apublish, publish
"""


def run_publisher(
    messages: Path, code: str, *, delay: float = 0.0
) -> subprocess.CompletedProcess[str]:
    database = str(connection.settings_dict["NAME"])
    return subprocess.run(
        [sys.executable, "-c", f"{PUBLISHER}\n{code}", database, str(messages), str(delay)],
        cwd=django_settings.BASE_DIR,
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )


def lines(messages: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in messages.read_text().splitlines()]


def data(lines: list[dict[str, Any]]) -> list[bytes]:
    hints = [from_message(line["message"]) for line in lines]
    return [entry.wire for one in hints for entry in one.entries]


@pytest.mark.django_db(transaction=True)
def test_a_process_without_a_hub_rings_on_a_thread_of_its_own_before_it_ends(
    tmp_path: Path,
) -> None:
    run_publisher(tmp_path / "messages", "publish('news', 'hi')", delay=0.3)
    [line] = lines(tmp_path / "messages")
    assert line["thread"] == "django-sse-doorbell"
    assert line["group"] == doorbell_group("news")
    assert data([line]) == [b"data: hi\n\n"]


@pytest.mark.django_db(transaction=True)
def test_all_that_a_process_published_is_rung_before_it_ends(tmp_path: Path) -> None:
    code = "for number in range(50): publish('news', str(number))"
    run_publisher(tmp_path / "messages", code)
    assert data(lines(tmp_path / "messages")) == [b"data: %d\n\n" % number for number in range(50)]


@pytest.mark.django_db(transaction=True)
def test_async_code_without_a_hub_is_rung_before_its_process_ends(tmp_path: Path) -> None:
    code = "import asyncio; asyncio.run(apublish('news', 'hi'))"
    run_publisher(tmp_path / "messages", code, delay=0.3)
    assert data(lines(tmp_path / "messages")) == [b"data: hi\n\n"]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "publishing",
    [
        "publish('news', 'hi')",
        "import asyncio; asyncio.run(apublish('news', 'hi'))",
        "with transaction.atomic(): publish('news', 'hi')",
    ],
)
def test_a_process_that_ends_without_a_word_has_rung_before_publishing_returned(
    publishing: str, tmp_path: Path
) -> None:
    code = f"from django.db import transaction\n{publishing}\nos._exit(0)"
    run_publisher(tmp_path / "messages", code, delay=0.3)
    assert data(lines(tmp_path / "messages")) == [b"data: hi\n\n"]


@pytest.mark.django_db(transaction=True)
def test_a_process_that_serves_requests_does_not_wait_and_rings_before_it_ends(
    tmp_path: Path,
) -> None:
    code = """
from django.core.signals import request_started
request_started.send(sender=None)
for number in range(50):
    publish("news", str(number))
"""
    # So long that all are published meanwhile, also where each commit takes long.
    run_publisher(tmp_path / "messages", code, delay=1)
    sent = lines(tmp_path / "messages")
    assert data(sent) == [b"data: %d\n\n" % number for number in range(50)]
    # What piled up while the first one was on its way went out together.
    assert len(sent) < 10


@pytest.mark.django_db(transaction=True)
def test_the_child_of_a_process_that_serves_requests_rings_before_publishing_returns(
    tmp_path: Path,
) -> None:
    code = """
from django.core.signals import request_started
request_started.send(sender=None)
child = os.fork()
if child:
    assert os.waitpid(child, 0)[1] == 0
else:
    publish("news", "hi")
    os._exit(0)
"""
    run_publisher(tmp_path / "messages", code, delay=0.3)
    assert data(lines(tmp_path / "messages")) == [b"data: hi\n\n"]


@pytest.mark.django_db(transaction=True)
def test_a_forked_process_rings_for_itself(tmp_path: Path) -> None:
    code = """
publish("news", "parent")
connection.close()
child = os.fork()
if child:
    os.waitpid(child, 0)
else:
    publish("news", "child")
"""
    finished = run_publisher(tmp_path / "messages", code)
    sent = lines(tmp_path / "messages")
    assert sorted(data(sent)) == [b"data: child\n\n", b"data: parent\n\n"]
    assert len({line["process"] for line in sent}) == 2
    # Neither has waited in vain for the other's.
    assert "doorbells" not in finished.stderr


@pytest.mark.django_db(transaction=True)
def test_what_a_process_has_still_to_ring_as_it_forks_is_not_rung_by_its_child(
    tmp_path: Path,
) -> None:
    code = """
from django.core.signals import request_started
request_started.send(sender=None)
for number in range(5):
    publish("news", str(number))
connection.close()
child = os.fork()
if child:
    assert os.waitpid(child, 0)[1] == 0
else:
    publish("news", "child")
"""
    run_publisher(tmp_path / "messages", code, delay=0.3)
    sent = lines(tmp_path / "messages")
    numbers = [b"data: %d\n\n" % number for number in range(5)]
    assert sorted(data(sent)) == [*numbers, b"data: child\n\n"]


@pytest.mark.django_db(transaction=True)
def test_a_layer_that_hangs_keeps_publishers_and_the_end_of_a_process_for_a_moment_alone(
    tmp_path: Path,
) -> None:
    code = """
import time
began = time.monotonic()
for number in range(30):
    publish("news", str(number))
# A second at the first one, and perhaps at one or two others: the layer has five for each.
assert time.monotonic() - began < 15, time.monotonic() - began
"""
    finished = run_publisher(tmp_path / "messages", code, delay=3600)
    assert "The process ended before its last doorbells were sent." in finished.stderr
    assert not (tmp_path / "messages").exists()


@pytest.mark.django_db(transaction=True)
def test_where_no_thread_can_be_had_publishers_do_without_and_say_so_seldom(
    tmp_path: Path,
) -> None:
    code = """
from threading import Thread
start = Thread.start

def refuse(thread):
    raise RuntimeError("can't start new thread")

Thread.start = refuse
for number in range(3):
    publish("news", str(number))
Thread.start = start
publish("news", "at last")
"""
    finished = run_publisher(tmp_path / "messages", code)
    assert finished.stderr.count("Traceback") == 1
    assert finished.stderr.count("hubs will ask the store") == 1
    assert data(lines(tmp_path / "messages")) == [b"data: at last\n\n"]
