"""The names of the redis store's keys and channels, on one server and in a cluster."""

from binascii import crc_hqx
from itertools import count
from typing import Final

from django.core.exceptions import ImproperlyConfigured

from django_sse.groups.names import OWNER_PREFIX
from django_sse.groups.namespaces import placing_digest
from django_sse.text import plain

_SLOTS: Final = 16384
# In how many slots a cluster keeps the groups. More of them spread over more servers, and cost a
# hub more calls for each comparison.
_SHARDS: Final = 32


class Keys:
    """The keys on one server: each group has a slot of its own, and there is one set of changes.

    Args:
        prefix: What all of them begin with.
        db: The number of the database, which has to be in the names of channels alone: all
            databases of a server share these.
    """

    shards = range(1)
    publishing = "PUBLISH"
    """The command that publishes to a channel."""
    subscribing = "SUBSCRIBE"
    unsubscribing = "UNSUBSCRIBE"

    def __init__(self, prefix: str, db: int = 0) -> None:
        self._prefix = prefix
        self._db = db

    @property
    def acl(self) -> str:
        """The rules by which a user of Redis may use all channels."""
        return f"&{{{self._prefix}:* &{self._prefix}:*"

    def shard(self, group: str) -> int:
        """Return the shard that a group belongs to."""
        return 0

    def of_group(self, group: str) -> list[str]:
        """Return the keys that only this group has, in one slot: its hash and its stream."""
        tag = self._tag(group)
        return [f"{tag}:group", f"{tag}:events"]

    def of_newest(self, group: str) -> list[str]:
        """Return the keys of its newest events, in the same slot: these by key, and the keys of
        events by number."""
        tag = self._tag(group)
        return [f"{tag}:newest", f"{tag}:keys"]

    def changes(self, shard: int) -> str:
        """Return the key of the set of changes of a shard's groups."""
        return f"{self._prefix}:changed"

    def producing(self, shard: int) -> str:
        """Return the key of the set of a shard's groups that have a producer."""
        return f"{self._prefix}:producing"

    def channel(self, group: str) -> str:
        """Return the channel of a group's doorbell, in the group's slot. All owners of a shard
        share one: to subscribe for each would cost more than to hear of others' ends."""
        if group.startswith(OWNER_PREFIX):
            return self.owners_channel(self.shard(group))
        return f"{self._tag(group)}:doorbell:{self._db}"

    def owners_channel(self, shard: int) -> str:
        """Return the channel of all owners of a shard."""
        return f"{self._prefix}:doorbell:{self._db}"

    def test_channel(self, shard: int, token: str) -> str:
        """Return a channel of a subscriber's own, in the slot of a shard's changes."""
        return f"{self.owners_channel(shard)}:{token}"

    def _tag(self, group: str) -> str:
        # The text in braces chooses the slot.
        return f"{{{self._prefix}:{plain(group)}}}"


class ClusterKeys(Keys):
    """The keys in a cluster. Each shard has a slot, and the slots are as far apart as possible.

    A shard's set of changes is in the slot of its groups, so that one server takes an event and
    tells of it. What is derived from a group is in the group's shard: see ``placing_digest``.

    Raises:
        ImproperlyConfigured: The prefix has a brace.
    """

    shards = range(_SHARDS)
    publishing = "SPUBLISH"
    subscribing = "SSUBSCRIBE"
    unsubscribing = "SUNSUBSCRIBE"

    def __init__(self, prefix: str) -> None:
        super().__init__(prefix)
        if "{" in prefix or "}" in prefix:
            raise ImproperlyConfigured(
                f"The redis store's `prefix` has a brace: {prefix!r}. In a Redis Cluster, braces "
                "choose the server."
            )
        tags: dict[int, str] = {}
        for number in count():
            tag = f"{prefix}:{number}"
            tags.setdefault(_slot(tag) * _SHARDS // _SLOTS, tag)
            if len(tags) == _SHARDS:
                break
        self._tags = [f"{{{tags[shard]}}}" for shard in self.shards]
        self._slots = {f"{{{tag}": _slot(tag) for tag in tags.values()}
        self.slots = list(self._slots.values())
        """The slots of all keys."""

    def slot(self, key: str) -> int:
        """Return the slot of one of these keys."""
        return self._slots[key.partition("}")[0]]

    def shard(self, group: str) -> int:
        return int(placing_digest(plain(group))[:8], 16) % _SHARDS

    def _tag(self, group: str) -> str:
        return f"{self._tags[self.shard(group)]}:{plain(group)}"

    def changes(self, shard: int) -> str:
        return f"{self._tags[shard]}:changed"

    def producing(self, shard: int) -> str:
        return f"{self._tags[shard]}:producing"

    def owners_channel(self, shard: int) -> str:
        return f"{self._tags[shard]}:doorbell:{self._db}"


def _slot(tag: str) -> int:
    return crc_hqx(tag.encode(), 0) % _SLOTS
