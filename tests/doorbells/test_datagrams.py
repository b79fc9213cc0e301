"""Doorbells between the processes of one host, without a service."""

import asyncio
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from django.conf import settings as django_settings
from django.db import connection
from django.test import override_settings

from django_sse.doorbells.base import POLL_SECONDS_WITHOUT_DOORBELL
from django_sse.doorbells.datagrams import DatagramDoorbell
from django_sse.doorbells.socket_directory import socket_directory
from django_sse.groups.entries import Hint
from django_sse.stores import get_store
from django_sse.stores.database import DatabaseStore
from django_sse.stores.memory import MemoryStore
from django_sse.stores.redis import RedisStore
from tests import postgresql
from tests.clients import connected
from tests.doorbells.conftest import Ear, hint
from tests.streams import until

# Another process, which may be killed before it has cleaned up.
RINGER = """
import sys
from pathlib import Path

from django.conf import settings

settings.configure()

from django_sse.doorbells.datagrams import DatagramDoorbell
from django_sse.stores.base import Hint
from django_sse.stores.memory import MemoryStore

store = MemoryStore()
store.file = Path(sys.argv[1])
hints = [Hint(f"group{number}", number + 1, False) for number in range(int(sys.argv[2]))]
DatagramDoorbell(store).ring(hints)
"""

PUBLISHER = """
import sys

import django
from django.conf import settings

settings.configure(
    INSTALLED_APPS=["django_sse"],
    USE_TZ=True,
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": sys.argv[1]}},
)
django.setup()

from django_sse import cancel, publish

for number in range(200):
    publish("news", str(number))
cancel("news")
"""


async def run(code: str, *arguments: object) -> None:
    """Run code in a process of its own."""
    await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=django_settings.BASE_DIR,
        check=True,
        timeout=60,
    )


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory whose path is short enough for a socket."""
    with TemporaryDirectory(prefix="sse-") as directory:
        yield Path(directory)


@pytest.fixture
def store(short_path: Path) -> Iterator[MemoryStore]:
    """A store that is a file, as far as its doorbell knows."""
    store = MemoryStore()
    store.file = short_path / "file"
    store.file.touch()
    yield store
    assert [path.name for path in short_path.iterdir()] == ["file"]


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("everything_ends")
@override_settings(DJANGO_SSE={"SYNC_INTERVAL": 3600})
async def test_what_another_process_publishes_arrives_without_asking_the_store() -> None:
    async with connected("news") as client:
        await run(PUBLISHER, connection.settings_dict["NAME"])
        assert await asyncio.wait_for(client.stream.ended, 30) == "cancelled"
        assert client.data[:-1] == [str(number) for number in range(200)]


async def test_hubs_of_other_processes_hear_where_the_groups_stand(
    ear: Ear, store: MemoryStore
) -> None:
    receiver = DatagramDoorbell(store).receiver(ear)
    await receiver.open()
    assert receiver.poll_seconds > POLL_SECONDS_WITHOUT_DOORBELL
    await run(RINGER, store.file, 40)
    await until(lambda: len(ear.heard) == 40)
    assert ear.heard == [Hint(f"group{number}", number + 1, False) for number in range(40)]
    await receiver.close()


async def test_a_process_rings_its_own_hubs_once(ear: Ear, store: MemoryStore) -> None:
    doorbell = DatagramDoorbell(store)
    receiver = doorbell.receiver(ear)
    await receiver.open()
    doorbell.ring([hint(7)])
    await run(RINGER, store.file, 1)
    await until(lambda: len(ear.heard) == 2)
    assert ear.heard == [hint(7), Hint("group0", 1, False)]
    await receiver.close()


async def test_what_a_full_queue_may_have_left_out_is_asked_of_the_store(
    ear: Ear, store: MemoryStore
) -> None:
    receiver = DatagramDoorbell(store).receiver(ear)
    await receiver.open()
    # Meanwhile the hub reads nothing.
    subprocess.run(
        [sys.executable, "-c", RINGER, str(store.file), "1000"],
        cwd=django_settings.BASE_DIR,
        check=True,
    )
    await until(lambda: ear.compared)
    await receiver.close()


async def test_a_datagram_that_is_no_doorbell_is_logged_and_the_next_one_rings(
    ear: Ear, store: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    receiver = DatagramDoorbell(store).receiver(ear)
    await receiver.open()
    [path] = socket_directory(store).directory.iterdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        for garbage in (b"", b"\xff\0", b"news", b"a/b/c 1 0", b"news 1 0\nx", b"1 " * 5000):
            sender.sendto(garbage, str(path))
        sender.sendto(b"news 1 0", str(path))
        await until(lambda: ear.heard)
        assert ear.heard == [Hint("news", 1, False)]
        # A flood of them does not flood the log.
        assert caplog.text.count("not a valid doorbell") == 1
    await receiver.close()


async def test_the_socket_of_a_process_that_was_killed_is_removed(
    ear: Ear, store: MemoryStore
) -> None:
    receiver = DatagramDoorbell(store).receiver(ear)
    await receiver.open()
    left_behind = socket_directory(store).directory / "0123456789abcdef"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as dead:
        dead.bind(str(left_behind))
    await run(RINGER, store.file, 1)
    assert not left_behind.exists()
    await until(lambda: ear.heard)
    await receiver.close()


async def test_a_socket_whose_file_has_gone_is_made_again(ear: Ear, store: MemoryStore) -> None:
    receiver = DatagramDoorbell(store).receiver(ear)
    await receiver.open()
    [path] = socket_directory(store).directory.iterdir()
    await receiver.renew()
    assert path.exists()
    path.unlink()
    await receiver.renew()
    await run(RINGER, store.file, 1)
    await until(lambda: ear.heard)
    await receiver.close()


async def test_without_a_directory_for_temporary_files_publishers_and_hubs_do_without(
    ear: Ear, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> str:
        raise FileNotFoundError("No usable temporary directory found.")

    monkeypatch.setattr("tempfile.gettempdir", fail)
    doorbell = DatagramDoorbell(MemoryStore())
    doorbell.ring([hint(7)])
    assert ear.heard == [hint(7)]
    receiver = doorbell.receiver(ear)
    await receiver.open()
    assert receiver.poll_seconds == POLL_SECONDS_WITHOUT_DOORBELL
    assert "Other processes cannot be rung" in caplog.text
    assert "No socket can be made" in caplog.text
    await receiver.close()


async def test_a_hub_that_can_have_no_socket_says_so_and_asks_the_store_often(
    ear: Ear, short_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = MemoryStore()
    store.file = short_path / "nowhere" / "file"
    receiver = DatagramDoorbell(store).receiver(ear)
    await receiver.open()
    assert "No socket can be made" in caplog.text
    assert receiver.poll_seconds == POLL_SECONDS_WITHOUT_DOORBELL
    await receiver.close()


async def test_who_may_write_the_file_may_ring(ear: Ear, store: MemoryStore) -> None:
    assert store.file
    store.file.chmod(0o660)
    receiver = DatagramDoorbell(store).receiver(ear)
    await receiver.open()
    [path] = socket_directory(store).directory.iterdir()
    assert path.stat().st_mode & 0o777 == 0o660
    await receiver.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another group")
async def test_who_shares_a_directory_by_its_group_may_ring(ear: Ear, store: MemoryStore) -> None:
    assert store.file
    group = 65534
    for path, mode in ((store.file.parent, 0o2770), (store.file, 0o660)):
        os.chown(path, -1, group)
        path.chmod(mode)
    receiver = DatagramDoorbell(store).receiver(ear)
    await receiver.open()
    [path] = socket_directory(store).directory.iterdir()
    for each, mode in ((path.parent, 0o770), (path, 0o660)):
        assert each.stat().st_gid == group
        assert each.stat().st_mode & 0o777 == mode
    await receiver.close()


# Where they meet


def test_processes_meet_beside_the_sqlite_file() -> None:
    store = DatabaseStore()
    assert store.file
    assert socket_directory(store).directory.parent == store.file.parent


def test_they_meet_elsewhere_where_its_path_is_too_long_for_a_socket() -> None:
    store = MemoryStore()
    store.file = Path("/", "x" * 90)
    another = MemoryStore()
    another.file = Path("/", "y" * 90)
    place = socket_directory(store).directory
    assert place == socket_directory(store).directory != socket_directory(another).directory
    assert len(str(place)) < 80


def test_stores_that_are_no_file_meet_by_where_they_are_kept() -> None:
    stores = [
        DatabaseStore(using=postgresql.ALIAS),
        RedisStore(url="redis://localhost/0"),
        RedisStore(url="redis://localhost/1"),
        RedisStore(url="redis://localhost/1", prefix="other"),
    ]
    places = [socket_directory(store).directory for store in stores]
    assert len(set(places)) == len(stores)
    # However a process is let in, and whatever one might try out to find its password.
    for url in (
        "redis://localhost/1",
        "redis://:secret@localhost:6379/1",
        "redis://a:b@localhost/1",
    ):
        assert socket_directory(RedisStore(url=url)).directory == places[2]


async def test_a_link_in_the_place_of_the_directory_is_not_followed(
    ear: Ear, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    doorbell = DatagramDoorbell(MemoryStore())
    directory = socket_directory(MemoryStore()).directory
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    directory.symlink_to(elsewhere)
    receiver = doorbell.receiver(ear)
    await receiver.open()
    assert receiver.poll_seconds == POLL_SECONDS_WITHOUT_DOORBELL
    for _ in range(3):
        doorbell.ring([hint(7)])
    assert ear.heard == 3 * [hint(7)]
    assert not list(elsewhere.iterdir())
    # Once for the hub that cannot be rung, once for all that is published.
    assert caplog.text.count("cannot be used as the directory of sockets") == 2


async def test_a_hub_gets_its_socket_once_it_can_have_one(
    ear: Ear, store: MemoryStore, short_path: Path
) -> None:
    in_the_way = short_path / "file-doorbells"
    in_the_way.touch()
    receiver = DatagramDoorbell(store).receiver(ear)
    await receiver.open()
    assert receiver.poll_seconds == POLL_SECONDS_WITHOUT_DOORBELL
    in_the_way.unlink()
    await receiver.renew()
    assert receiver.poll_seconds > POLL_SECONDS_WITHOUT_DOORBELL
    await run(RINGER, store.file, 1)
    await until(lambda: ear.heard)
    await receiver.close()


async def test_a_loop_that_cannot_wait_for_a_socket_leaves_the_store_to_be_asked(
    ear: Ear, store: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    class Loop(asyncio.AbstractEventLoop):
        """One that raises NotImplementedError for whatever it is asked for."""

    ear.loop = Loop()  # type: ignore[abstract]
    receiver = DatagramDoorbell(store).receiver(ear)
    await receiver.open()
    await receiver.close()
    assert receiver.poll_seconds == POLL_SECONDS_WITHOUT_DOORBELL
    assert "No socket can be made" in caplog.text


def test_the_child_of_a_fork_leaves_the_sockets_of_its_parent_alone(store: MemoryStore) -> None:
    place = socket_directory(store)
    name, bound = place.bind()
    bound.setblocking(True)
    bound.settimeout(30)
    if not (child := os.fork()):
        place.release(name)
        # To the child it is another's.
        place.send([b"news 1 0"])
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert place.has(name)
    assert bound.recv(100) == b"news 1 0"
    bound.close()
    place.release(name)


# What others have put there


@pytest.fixture
def key(short_path: Path) -> Iterator[Path]:
    """A file that is nobody's business."""
    key = short_path / "key"
    key.write_text("secret")
    key.chmod(0o600)
    yield key
    assert key.read_text() == "secret"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    key.unlink()


@pytest.mark.usefixtures("store")
async def test_a_publisher_removes_no_file_and_follows_no_link(
    short_path: Path, key: Path, ear: Ear
) -> None:
    directory = short_path / "file-doorbells"
    directory.mkdir(mode=0o700)
    names = [f"{number:016x}" for number in range(4)]
    (directory / names[0]).write_text("a file")
    (directory / names[1]).symlink_to(key)
    (directory / "other").write_text("not of our form")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as somebody_elses:
        somebody_elses.setblocking(False)
        somebody_elses.bind(str(short_path / "socket"))
        (directory / names[2]).symlink_to(short_path / "socket")
        await run(RINGER, short_path / "file", 1)
        with pytest.raises(BlockingIOError):
            somebody_elses.recv(100)
    assert sorted(os.listdir(directory)) == [*names[:3], "other"]
    for path in (*directory.iterdir(), short_path / "socket"):
        path.unlink()
    directory.rmdir()


async def test_a_link_in_the_place_of_a_new_socket_opens_no_file_to_others(
    ear: Ear,
    store: MemoryStore,
    key: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert store.file
    store.file.chmod(0o666)

    class Swapped(socket.socket):
        """A socket in whose place somebody puts a link, as soon as it is there."""

        def bind(self, address: object) -> None:
            super().bind(address)  # type: ignore[arg-type]
            [path] = socket_directory(store).directory.iterdir()
            path.unlink()
            path.symlink_to(key)

    monkeypatch.setattr("django_sse.doorbells.socket_directory.socket.socket", Swapped)
    receiver = DatagramDoorbell(store).receiver(ear)
    await receiver.open()
    assert "No socket can be made" in caplog.text
    for path in socket_directory(store).directory.iterdir():
        path.unlink()
    socket_directory(store).directory.rmdir()


@pytest.mark.parametrize(("mode", "is_used"), [(0o700, True), (0o755, True), (0o770, False)])
async def test_a_directory_that_more_may_write_than_the_file_is_not_used(
    ear: Ear, store: MemoryStore, mode: int, is_used: bool
) -> None:
    directory = socket_directory(store).directory
    directory.mkdir()
    directory.chmod(mode)
    receiver = DatagramDoorbell(store).receiver(ear)
    await receiver.open()
    assert (receiver.poll_seconds > POLL_SECONDS_WITHOUT_DOORBELL) is is_used
    await receiver.close()
    if not is_used:
        directory.rmdir()


NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


def as_nobody(act: Callable[[], object]) -> None:
    """Do something in a process without any rights."""
    if not (child := os.fork()):
        try:
            signal.alarm(30)
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            act()
        except BaseException as error:
            os.write(2, f"{error!r}\n".encode())
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.fixture
def set_up_by_nobody(short_path: Path, key: Path) -> Iterator[Path]:
    """The directory of sockets, made by an account without rights, which wants root's key."""
    short_path.chmod(0o777)
    directory = short_path / "file-doorbells"

    def set_up() -> None:
        directory.mkdir(mode=0o755)
        (directory / f"{1:016x}").symlink_to(key)
        (directory / f"{2:016x}").write_text("a file that refuses datagrams")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as dead:
            dead.bind(str(directory / f"{3:016x}"))

    as_nobody(set_up)
    yield directory
    for path in directory.iterdir():
        path.unlink()
    directory.rmdir()


@as_root
async def test_root_does_not_use_what_an_account_without_rights_has_made(
    ear: Ear,
    store: MemoryStore,
    set_up_by_nobody: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    receiver = DatagramDoorbell(store).receiver(ear)
    await receiver.open()
    assert receiver.poll_seconds == POLL_SECONDS_WITHOUT_DOORBELL
    for _ in range(3):
        DatagramDoorbell(store).ring([hint(7)])
    assert len(os.listdir(set_up_by_nobody)) == 3
    assert caplog.text.count("belongs to another user") == 2


@as_root
async def test_root_rings_beside_the_file_of_another_account_and_harms_nothing(
    ear: Ear, store: MemoryStore, set_up_by_nobody: Path
) -> None:
    assert store.file
    os.chown(store.file, NOBODY, NOBODY)
    await run(RINGER, store.file, 1)
    # The socket of a process that has gone is removed, and nothing else.
    assert sorted(os.listdir(set_up_by_nobody)) == [f"{1:016x}", f"{2:016x}"]
    receiver = DatagramDoorbell(store).receiver(ear)
    await receiver.open()
    assert receiver.poll_seconds > POLL_SECONDS_WITHOUT_DOORBELL
    await run(RINGER, store.file, 1)
    await until(lambda: ear.heard)
    await receiver.close()


@pytest.mark.django_db(transaction=True)
async def test_the_default_store_of_the_tests_has_a_place(ear: Ear) -> None:
    receiver = DatagramDoorbell(get_store()).receiver(ear)
    await receiver.open()
    assert receiver.poll_seconds > POLL_SECONDS_WITHOUT_DOORBELL
    assert os.listdir(socket_directory(get_store()).directory)
    await receiver.close()
