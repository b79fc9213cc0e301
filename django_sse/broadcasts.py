"""Broadcasts: the changes of a model's rows, published with their commit.

A ``models.py`` may import this module: it needs neither settings nor apps.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import Any, Final, TypeVar

from django.core.exceptions import FieldDoesNotExist, ImproperlyConfigured
from django.db import NotSupportedError, connections, transaction
from django.db.models import BooleanField, Field, Model, QuerySet
from django.db.models.signals import class_prepared, post_save, pre_delete, pre_save
from django.utils.encoding import is_protected_type
from django.utils.functional import Promise

from django_sse.event import Event
from django_sse.exceptions import GroupCancelled, PartlyPublished
from django_sse.groups.names import check_pattern, expand_group, fields_of, validate_group
from django_sse.groups.namespaces import plain_name
from django_sse.publishing import publish_many
from django_sse.stores import get_store

ModelT = TypeVar("ModelT", bound=Model)

EventPairs = Iterator[tuple[str, Event]]

_CHANGES: Final = ("created", "updated", "deleted")

# Rows that one statement names by their primary keys.
_BATCH: Final = 500

# The attribute of an instance with its rows before the saves that have not ended.
_BEFORE: Final = "_django_sse_before"


class Broadcast:
    """Publishes each change of a model's rows. Declare it as an attribute of the model, or register
    a model of others:

        class Order(models.Model):
            broadcasts = Broadcast("orders", fields=["status"])

        Broadcast("users", template="users/_row.html").register(User)

    The types of the events are the model's name with the change: ``order-created``,
    ``order-updated`` and ``order-deleted``. Without ``fields``, ``serialize`` or ``template`` their
    data is ``{"id": ...}``, the primary key.

    It listens to Django's signals, so what raises in it is raised by ``save()`` or ``delete()``: a
    change that nobody hears of would leave pages in error for good. But a group that is cancelled
    is left out.

    Args:
        group: A group, with fields of the model in braces: ``"customer-{customer_id}"``; if one of
            them is None, nothing is published. Or a function of the instance that returns a group,
            several, or None.
        fields: The names of the fields that are sent with the primary key.
        serialize: A function of the instance that returns the data, or a serializer class of
            Django REST framework.
        template: A template that is rendered with the instance, under the name of its model, such
            as ``order``.
        events: Which changes to publish, of ``created``, ``updated`` and ``deleted``.

    Raises:
        ImproperlyConfigured: An argument cannot work.
    """

    def __init__(
        self,
        group: str | Callable[[Any], str | Iterable[str] | None],
        *,
        fields: Sequence[str] = (),
        serialize: Callable[[Any], Any] | None = None,
        template: str | Sequence[str] | None = None,
        events: Sequence[str] = _CHANGES,
    ) -> None:
        if not callable(group):
            check_pattern(group)
        if sum(map(bool, (fields, serialize, template))) > 1:
            raise ImproperlyConfigured(
                "A Broadcast has either `fields`, or `serialize`, or a `template`, not several."
            )
        for name, given in (("fields", fields), ("events", events)):
            if isinstance(given, str):
                raise ImproperlyConfigured(
                    f"A Broadcast's `{name}` are a list of names, and {given!r} is one: give "
                    f"[{given!r}]."
                )
        if not events or not set(events) <= set(_CHANGES):
            raise ImproperlyConfigured(
                f"A Broadcast's `events` are some of {', '.join(_CHANGES)}, not {events!r}."
            )
        self._group = group
        self._fields = fields
        self._serialize = serialize
        self._template = template
        self._events = frozenset(events)
        self._models: set[type[Model]] = set()

    def register(self, model: type[Model]) -> None:
        """Publish the changes of a model that is declared elsewhere, such as in another app.

        Call it once the models are there, such as in ``AppConfig.ready``.

        Raises:
            ImproperlyConfigured: The model is a proxy or abstract, or lacks a field that is named.
        """
        if model._meta.abstract:
            raise ImproperlyConfigured(
                f"{model.__name__} is abstract: declare a Broadcast as its attribute."
            )
        self._publish_changes_of(model)

    def contribute_to_class(self, model: type[Model], name: str) -> None:
        """Be the attribute of a model, as Django calls this for each attribute that has it."""
        setattr(model, name, self)
        if model._meta.proxy:
            _refuse_proxy(model)

        def prepare(sender: type[Model], **kwargs: Any) -> None:
            # The fields of a model are there once it is prepared.
            is_declared = sender is model
            inherits = (
                model._meta.abstract
                and issubclass(sender, model)
                and getattr(sender, name, None) is self
                # The broadcast of a parent that is no abstract one hears of its children, too.
                and not any(getattr(parent, name, None) is self for parent in sender._meta.parents)
            )
            if is_declared or inherits:
                self._publish_changes_of(sender)

        class_prepared.connect(prepare, weak=False)

    def _publish_changes_of(self, model: type[Model]) -> None:
        if model._meta.proxy:
            _refuse_proxy(model)
        if model not in self._models:
            _listen(_Publisher(self, model))
            self._models.add(model)


class BroadcastQuerySet(QuerySet[ModelT]):
    """Publishes also what ``bulk_create``, ``bulk_update`` and ``update`` change, of which Django
    sends no signals. Use ``objects = BroadcastQuerySet.as_manager()`` on a model with a broadcast.
    """

    def bulk_create(
        self,
        objs: Iterable[ModelT],
        batch_size: int | None = None,
        ignore_conflicts: bool = False,
        update_conflicts: bool = False,
        update_fields: Any = None,
        unique_fields: Any = None,
    ) -> list[ModelT]:
        """Create rows, and publish them in one statement and transaction.

        Raises:
            NotSupportedError: The database does not say which rows it has created: with
                ``ignore_conflicts`` or ``update_conflicts``, or on MySQL. Nothing was created.
        """
        create = partial(super().bulk_create, objs := list(objs), batch_size)
        publishers = _publishers.get(self.model, ())
        if not publishers:
            return create(ignore_conflicts, update_conflicts, update_fields, unique_fields)
        with transaction.atomic(using=self._database()):
            created = [] if ignore_conflicts or update_conflicts else create()
            if not all(instance.pk is not None for instance in created) or len(created) < len(objs):
                raise NotSupportedError(
                    "bulk_create() cannot publish what it creates here: the database does not say "
                    f"which rows these are. Use {self.model.__name__}._base_manager, and publish."
                )
            _publish(
                [
                    pair
                    for publisher in publishers
                    for instance in created
                    for pair in publisher.created(publisher.as_saved(instance, self.db))
                ],
                self.db,
            )
        return created

    bulk_create.alters_data = True  # type: ignore[attr-defined]

    def update(self, **kwargs: Any) -> int:
        """Update the rows, and publish each of them, all in one transaction.

        The rows are read before and after, by their primary keys.
        """
        update = super().update
        publishers = _publishers.get(self.model, ())
        if not publishers or self.query.is_sliced:
            return update(**kwargs)
        count = 0
        pairs: list[tuple[str, Event]] = []
        with transaction.atomic(using=self._database()):
            keys = iter(dict.fromkeys(self.order_by().values_list("pk", flat=True)))
            while batch := list(islice(keys, _BATCH)):
                rows = self.model._base_manager.using(self.db).filter(pk__in=batch)
                before = {row.pk: row for row in rows.select_for_update()}
                # Only these: a row that matches since then would be changed in silence.
                count += super(BroadcastQuerySet, self.filter(pk__in=batch)).update(**kwargs)
                for row in rows:
                    for publisher in publishers:
                        pairs += publisher.updated(before.get(row.pk), row)
            _publish(pairs, self.db)
        return count

    update.alters_data = True  # type: ignore[attr-defined]

    def _database(self) -> str:
        self._for_write = True
        return self.db


class _Publisher:
    """Makes the events of one broadcast for one model."""

    def __init__(self, broadcast: Broadcast, model: type[Model]) -> None:
        self.model = model
        self.events = broadcast._events
        self._name = model._meta.model_name
        self._group = broadcast._group
        self._serialize = broadcast._serialize
        self._template = broadcast._template
        self._fields = {name: _field(model, name) for name in broadcast._fields}
        self._group_fields: Mapping[str, str] = {}
        if not callable(self._group):
            self._group_fields = {
                name: _attribute(model, name) for name in fields_of(str(self._group))
            }
        varying = set(self._group_fields.values()) - {model._meta.pk.attname}
        self.may_move = callable(self._group) or bool(varying)
        self._reads_values = self.may_move or bool(
            self._fields or self._serialize or self._template
        )

    def created(self, now: Model) -> EventPairs:
        return self._to(self._groups(now), "created", now)

    def deleted(self, before: Model) -> EventPairs:
        return self._to(self._groups(before), "deleted", before)

    def updated(self, before: Model | None, now: Model) -> EventPairs:
        """Yield the events of an update, after which the row may be in other groups."""
        new = self._groups(now)
        old = self._groups(before) if before and self.may_move else new
        if before:
            yield from self._to([name for name in old if name not in new], "deleted", before)
        yield from self._to([name for name in new if name in old], "updated", now)
        yield from self._to([name for name in new if name not in old], "created", now)

    def as_saved(self, instance: Model, using: str, *, partly: bool = False) -> Model:
        """Return an instance that has what is in the database.

        Only the fields of ``update_fields`` were saved of one that was saved partly. The values of
        others may be expressions.
        """
        if self._reads_values and (partly or self._has_expressions(instance)):
            return _row(self.model, instance.pk, using) or instance
        return instance

    def _has_expressions(self, instance: Model) -> bool:
        values = vars(instance)
        return any(
            hasattr(values.get(field.attname), "resolve_expression")
            for field in self.model._meta.concrete_fields
        )

    def _to(self, groups: Sequence[str], change: str, instance: Model) -> EventPairs:
        if groups and change in self.events:
            event = self._event(f"{self._name}-{change}", instance)
            for group in groups:
                yield group, event

    def _event(self, event_type: str, instance: Model) -> Event:
        if self._template:
            return Event.from_template(
                self._template, {str(self._name): instance}, event=event_type
            )
        return Event(self._data(instance), event=event_type)

    def _data(self, instance: Model) -> Any:
        if isinstance(self._serialize, type):
            return self._serialize(instance).data
        if self._serialize:
            return self._serialize(instance)
        values = {name: _value(field, instance) for name, field in self._fields.items()}
        return {"id": instance.pk, **values}

    def _groups(self, instance: Model) -> list[str]:
        if callable(self._group):
            named = self._group(instance)
            names = [named] if isinstance(named, str | Promise) else named or ()
            return list(dict.fromkeys(map(validate_group, names)))
        values = {name: getattr(instance, attr) for name, attr in self._group_fields.items()}
        return [] if None in values.values() else [expand_group(self._group, values)]


_publishers: Final[dict[type[Model], list[_Publisher]]] = {}
"""What publishes the changes of each model: also of proxies, and of models that inherit from it."""


def _listen(publisher: _Publisher) -> None:
    def prepare(sender: type[Model], **kwargs: Any) -> None:
        if issubclass(sender, publisher.model):
            _listen_to(sender, publisher)

    prepare(publisher.model)
    for model in _subclasses(publisher.model):
        prepare(model)
    class_prepared.connect(prepare, weak=False)


def _listen_to(model: type[Model], publisher: _Publisher) -> None:
    _publishers.setdefault(model, []).append(publisher)
    pre_save.connect(_before_save, sender=model)
    post_save.connect(_after_save, sender=model)
    # With a receiver, Django reads what it deletes.
    if "deleted" in publisher.events and _is_of(model, publisher):
        pre_delete.connect(_before_delete, sender=model)


def _before_save(
    sender: type[Model], instance: Model, raw: bool, using: str, **kwargs: Any
) -> None:
    if raw:
        return
    # Django inserts a new instance whose primary key has a default, and asks no more.
    is_new = instance._state.adding and sender._meta.pk.has_default()
    may_exist = not is_new and instance.pk is not None
    models = {publisher.model for publisher in _publishers[sender] if publisher.may_move}
    before = {model: _row(model, instance.pk, using) if may_exist else None for model in models}
    # A receiver may save the instance once more.
    vars(instance).setdefault(_BEFORE, _Saves()).append(before)


def _after_save(
    sender: type[Model],
    instance: Model,
    created: bool,
    raw: bool,
    using: str,
    update_fields: Iterable[str] | None,
    **kwargs: Any,
) -> None:
    if raw:
        return
    before = _forget(instance)
    pairs: list[tuple[str, Event]] = []
    for publisher in _publishers[sender]:
        now = publisher.as_saved(instance, using, partly=update_fields is not None)
        if created:
            pairs += publisher.created(now)
        else:
            pairs += publisher.updated(before.get(publisher.model), now)
    _publish(pairs, using)


def _before_delete(sender: type[Model], instance: Model, using: str, **kwargs: Any) -> None:
    # Django deletes in a transaction, so this is published if the row is gone.
    pairs = [
        pair
        for publisher in _publishers[sender]
        # Django deletes the row of a parent as one of its own.
        if _is_of(sender, publisher)
        for pair in publisher.deleted(instance)
    ]
    _publish(pairs, using)


def _forget(instance: Model) -> Mapping[type[Model], Model | None]:
    saves: _Saves = vars(instance).pop(_BEFORE, _Saves())
    before = saves.pop() if saves else {}
    if saves:
        vars(instance)[_BEFORE] = saves
    return before


class _Saves(list[Mapping[type[Model], Model | None]]):
    """The rows before each save of an instance that has not ended, by model."""

    def __reduce__(self) -> tuple[type, tuple[()]]:
        # A receiver may pickle the instance, as for a cache.
        return _Saves, ()


def _publish(pairs: list[tuple[str, Event]], using: str) -> None:
    """Publish with the transaction on a database, whichever one the store uses."""
    if using != get_store().using and connections[using].in_atomic_block:
        transaction.on_commit(partial(_publish_now, pairs), using=using, robust=True)
    else:
        _publish_now(pairs)


def _publish_now(pairs: list[tuple[str, Event]]) -> None:
    """Publish to the groups that are not cancelled: nobody follows the others."""
    while pairs:
        try:
            publish_many(pairs)
        except GroupCancelled as error:
            pairs = [pair for pair in pairs if pair[0] != error.group]
        except PartlyPublished as error:
            cancelled = error.__cause__
            if not isinstance(cancelled, GroupCancelled):
                raise
            # It was cancelled while others of these groups were published to.
            failed = {*error.failed} - {plain_name(cancelled.group)}
            pairs = [pair for pair in pairs if pair[0] in failed]
        else:
            return


def _row(model: type[Model], key: Any, using: str) -> Model | None:
    """Return the row with a primary key as it is in the database."""
    return model._base_manager.using(using).filter(pk=key).first()


def _is_of(model: type[Model], publisher: _Publisher) -> bool:
    """Return whether a model is a publisher's model, or a proxy of it."""
    return model._meta.concrete_model is publisher.model


def _subclasses(model: type[Model]) -> Iterator[type[Model]]:
    for subclass in model.__subclasses__():
        if not subclass._meta.abstract:
            yield subclass
        yield from _subclasses(subclass)


def _field(model: type[Model], name: str) -> "Field[Any, Any]":
    """Return a field that has a column.

    Raises:
        ImproperlyConfigured: There is none of that name.
    """
    if name == "pk":
        return model._meta.pk
    with suppress(FieldDoesNotExist):
        field = model._meta.get_field(name)
        if isinstance(field, Field) and field.concrete:
            return field
    names = ", ".join(field.name for field in model._meta.concrete_fields)
    raise ImproperlyConfigured(
        f"The Broadcast of {model.__name__} names {name!r}, which is no field with a column. It "
        f"has: {names}."
    )


def _attribute(model: type[Model], name: str) -> str:
    """Return the attribute that has the value of a field in a group's pattern.

    Raises:
        ImproperlyConfigured: There is no such field, or its values make no names of groups.
    """
    field = _field(model, name)
    if isinstance(field, BooleanField):
        raise ImproperlyConfigured(
            f"The group of the Broadcast of {model.__name__} has the field {name!r}, which is true "
            "or false: give a function of the instance that returns the group."
        )
    return field.attname


def _value(field: "Field[Any, Any]", instance: Model) -> Any:
    """Return a field's value as Django's serializers have it."""
    value = field.value_from_object(instance)
    return value if is_protected_type(value) else field.value_to_string(instance)


def _refuse_proxy(model: type[Model]) -> None:
    raise ImproperlyConfigured(
        f"{model.__name__} is a proxy: declare the Broadcast on its model, or register that. It "
        "publishes what is saved through proxies, too."
    )
