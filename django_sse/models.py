"""The tables of the database store, and those of publishing by HTTP.

Times are in microseconds since the epoch, by the database's clock.
"""

from django.db import models

from django_sse.fields import GroupField
from django_sse.groups.entries import Kind
from django_sse.groups.names import NAME_LENGTH, OWNER_KEY_LENGTH


class EventGroup(models.Model):
    """A group's last number, and whether it is cancelled. Its row is the group's lock.

    ``producer`` is the token of its producer, 0 for none. ``renewed`` is when a producer was last
    alive, or has ended; 0 if the group never had one. ``run`` is where its last number was given:
    see ``stores.database.runs``.
    """

    name = GroupField(max_length=NAME_LENGTH, primary_key=True)
    first = models.BigIntegerField(default=0)
    head = models.BigIntegerField(default=0)
    cancelled = models.BooleanField(default=False)
    producer = models.BigIntegerField(default=0, db_default=0)
    renewed = models.BigIntegerField(default=0, db_default=0)
    run = models.CharField(max_length=64, default="", db_default="", blank=True)
    changed = models.BigIntegerField(db_index=True)

    class Meta:
        indexes = [models.Index(fields=["producer", "renewed"], name="django_sse_producers")]

    def __str__(self) -> str:
        return self.name


class StoredEvent(models.Model):
    """A numbered event, encoded as it goes over the wire, without its id."""

    id = models.BigAutoField(primary_key=True)
    group = GroupField(max_length=NAME_LENGTH)
    number = models.BigIntegerField()
    closes = models.BooleanField(default=False)
    exclude = models.CharField(max_length=OWNER_KEY_LENGTH, default="", db_default="", blank=True)
    created = models.BigIntegerField(db_index=True)
    # Last: SQLite reads a row from its beginning, up to what is asked for.
    wire = models.BinaryField()

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["group", "number"], name="django_sse_one_event_a_number"
            )
        ]

    def __str__(self) -> str:
        return f"{self.group} {self.number}"


class NewestEvent(models.Model):
    """The newest event of a key, which stays when the history does not keep it any more.

    ``key_digest`` is a hash, since a key may be longer than an index allows.
    """

    id = models.BigAutoField(primary_key=True)
    group = GroupField(max_length=NAME_LENGTH)
    key_digest = models.CharField(max_length=32)
    number = models.BigIntegerField()
    exclude = models.CharField(max_length=OWNER_KEY_LENGTH, default="", db_default="", blank=True)
    created = models.BigIntegerField()
    # Last, as above.
    wire = models.BinaryField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["group", "key_digest"], name="django_sse_newest_of_key")
        ]

    def __str__(self) -> str:
        return f"{self.group} {self.number}"


class OutboxEvent(models.Model):
    """Something that was published in a transaction and waits for its number.

    A transaction only inserts rows here, so it never waits for a group that another one has locked.
    ``at`` is when an end or a reopening of an owner was ordered. It counts if the publisher died
    and nobody looked for long. It is 0 for all else.
    """

    id = models.BigAutoField(primary_key=True)
    group = GroupField(max_length=NAME_LENGTH, db_index=True)
    kind = models.SmallIntegerField(choices=[(kind.value, kind.name.lower()) for kind in Kind])
    wire = models.BinaryField()
    exclude = models.CharField(max_length=OWNER_KEY_LENGTH, default="", db_default="", blank=True)
    at = models.BigIntegerField(default=0, db_default=0)

    def __str__(self) -> str:
        return f"{self.group} {self.id}"


class PublishToken(models.Model):
    """What a service shows that publishes by HTTP. Only a hash of its secret is kept.

    ``name`` is a full name, as a group's is: a token belongs to its tenant. ``groups`` has the
    patterns of the groups that it covers, with spaces between them. ``used`` is when it was last
    used, to a minute.
    """

    id = models.BigAutoField(primary_key=True)
    name = GroupField(max_length=NAME_LENGTH, unique=True)
    digest = models.CharField(max_length=64)
    groups = models.TextField()
    created = models.BigIntegerField()
    expires = models.BigIntegerField(null=True)
    used = models.BigIntegerField(null=True)

    def __str__(self) -> str:
        return self.name


class PublishRequest(models.Model):
    """A request with an ``Idempotency-Key`` that publishes, or has published.

    ``key`` and ``body`` are hashes. ``claim`` is a random text of who publishes it. ``answer`` is
    empty until it has published.
    """

    key = models.CharField(max_length=64, primary_key=True)
    body = models.CharField(max_length=64)
    claim = models.CharField(max_length=32)
    answer = models.TextField(default="", blank=True)
    expires = models.BigIntegerField(db_index=True)

    def __str__(self) -> str:
        return self.key
