"""Broadcasts: what is published of a model's changes, and when."""

import pickle
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.apps import AppConfig, apps
from django.core import serializers
from django.core.exceptions import ImproperlyConfigured
from django.db import NotSupportedError, connection, models, transaction
from django.db.models import F
from django.db.models.signals import post_save
from django.utils import timezone
from pytest_django import Settings
from rest_framework.serializers import ModelSerializer

from django_sse import InvalidEvent, InvalidGroup, cancel, user_group
from django_sse.broadcasts import Broadcast, BroadcastQuerySet
from django_sse.event import Decoder
from django_sse.stores import get_store
from tests import postgresql
from tests.queries import queries_about
from tests.tenancy import NAMESPACE, entered

pytestmark = pytest.mark.django_db(transaction=True)


class App(AppConfig):
    name = "tests"
    label = "broadcasts"


class Base(models.Model):
    objects: ClassVar[models.Manager[Any]]

    class Meta:
        abstract = True
        app_label = "broadcasts"

    def __str__(self) -> str:
        return f"{type(self).__name__} {self.pk}"


class Customer(Base):
    password = models.CharField(max_length=20)


class Order(Base):
    status = models.CharField(max_length=20, default="new")
    count = models.IntegerField(default=0)
    customer = models.ForeignKey(Customer, models.SET_NULL, null=True)
    note = models.CharField(max_length=20, default="internal")

    broadcasts = Broadcast("orders", fields=["status", "count"])
    to_customer = Broadcast("customer-{customer_id}", fields=["status"])

    objects = BroadcastQuerySet.as_manager()


class OrderProxy(Order):
    class Meta:
        proxy = True
        app_label = "broadcasts"


class Place(Base):
    name = models.CharField(max_length=20)

    broadcasts = Broadcast("places", fields=["name"])


class Restaurant(Place):
    stars = models.IntegerField(default=0)

    broadcasts = Broadcast("restaurants", fields=["name", "stars"])


class Bar(Place):
    pass


class Described(Base):
    broadcasts: Broadcast | None = Broadcast("described")

    class Meta(Base.Meta):
        abstract = True


class Page(Described):
    pass


class PageWithParts(Page):
    pass


class Picture(Described):
    pass


class Silent(Described):
    broadcasts = None


class DescribedBar(Described, Bar):  # type: ignore[misc]
    """Its parent has another broadcast of that name."""

    class Meta(Base.Meta):
        pass


class Line(Base):
    order = models.ForeignKey(Order, models.CASCADE)

    broadcasts = Broadcast(lambda line: ["lines", f"order-{line.order_id}"])


class Invoice(Base):
    order = models.ForeignKey(Order, models.PROTECT)


MODELS = (
    Customer,
    Order,
    Invoice,
    Place,
    Restaurant,
    Bar,
    Page,
    PageWithParts,
    Picture,
    Silent,
    DescribedBar,
    Line,
)


@pytest.fixture(autouse=True)
def tables(transactional_db: None, settings: Settings) -> Iterator[None]:
    # Django finds the relations of apps that are installed.
    settings.INSTALLED_APPS = [*settings.INSTALLED_APPS, f"{__name__}.App"]
    with tables_of([model for model in MODELS if not model._meta.abstract]):
        yield


@contextmanager
def tables_of(made: Sequence[type[models.Model]]) -> Iterator[None]:
    made = [model for model in made if not model._meta.proxy]
    with connection.schema_editor() as editor:
        for model in made:
            editor.create_model(model)
    yield
    with connection.schema_editor() as editor:
        for model in reversed(made):
            editor.delete_model(model)


NewModel = Callable[..., Any]


@pytest.fixture
def new_model(tables: None, request: pytest.FixtureRequest) -> Iterator[NewModel]:
    """Make a model that no other test has a broadcast of; its name is that of the test's number."""
    with ExitStack() as stack:

        def make(name: str, base: type[models.Model] = models.Model, **attributes: Any) -> Any:
            # A model of that name may have been made before.
            apps.all_models["broadcasts"].pop(name.lower(), None)
            meta = type("Meta", (), {"app_label": "broadcasts"})
            model = type(name, (base,), {"__module__": __name__, "Meta": meta, **attributes})
            stack.enter_context(tables_of([model]))
            return model

        yield make


@pytest.fixture
def task(new_model: NewModel) -> Any:
    """A model of another app."""
    return new_model(
        "Task",
        title=models.CharField(max_length=20),
        at=models.DateTimeField(null=True),
        file=models.FileField(null=True),
    )


def told(*groups: str) -> list[tuple[str | None, Any]]:
    """Return the types and the data of what was published to groups."""
    events = []
    for group in groups:
        for entry in async_to_sync(get_store().aread)(group, 0, 1000):
            for event in Decoder().feed(entry.wire):
                data = event.json() if event.text.startswith("{") else event.text
                events.append((event.event, data))
    return events


def since(group: str) -> Callable[[], list[tuple[str | None, Any]]]:
    """Return what tells what is published to a group from now on."""
    before = len(told(group))
    return lambda: told(group)[before:]


# What is published


def test_each_change_is_published() -> None:
    order = Order.objects.create()
    pk = order.pk
    order.status = "paid"
    order.save()
    order.delete()
    assert told("orders") == [
        ("order-created", {"id": pk, "status": "new", "count": 0}),
        ("order-updated", {"id": pk, "status": "paid", "count": 0}),
        ("order-deleted", {"id": pk, "status": "paid", "count": 0}),
    ]


def test_no_field_is_sent_that_is_not_named(new_model: NewModel) -> None:
    account = new_model("Account", password=models.CharField(max_length=20))
    Broadcast("accounts").register(account)
    account.objects.create(password="secret")
    assert told("accounts") == [("account-created", {"id": 1})]


def seen(task: Any) -> Any:
    return {"title": task.title.upper()}


def serializer_of(model: Any) -> type:
    meta = type("Meta", (), {"model": model, "fields": ["title"]})
    return type("TaskSerializer", (ModelSerializer,), {"Meta": meta})


@pytest.mark.parametrize(
    ("options", "data"),
    [
        (
            {"fields": ["title", "at", "file"]},
            {"id": 1, "title": "<b>", "at": None, "file": "a.txt"},
        ),
        ({"serialize": seen}, {"title": "<B>"}),
        ({"serialize": serializer_of}, {"title": "<b>"}),
        ({"template": "broadcast.html"}, '<li id="task-1">&lt;b&gt;</li>'),
    ],
    ids=["fields", "function", "rest_framework", "template"],
)
def test_what_is_sent_is_chosen(
    task: Any, options: dict[str, Any], data: Any, settings: Settings
) -> None:
    html = '<li id="task-{{ task.pk }}">{{ task.title }}</li>'
    loaders = [("django.template.loaders.locmem.Loader", {"broadcast.html": html})]
    backend = "django.template.backends.django.DjangoTemplates"
    settings.TEMPLATES = [{"BACKEND": backend, "OPTIONS": {"loaders": loaders}}]
    if options.get("serialize") is serializer_of:
        options = {"serialize": serializer_of(task)}
    Broadcast("tasks", **options).register(task)
    task.objects.create(title="<b>", file="a.txt")
    assert told("tasks") == [("task-created", data)]


def test_only_the_changes_that_are_asked_for_are_published(task: Any) -> None:
    Broadcast("tasks", events=["deleted"]).register(task)
    task.objects.create().save()
    task.objects.all().delete()
    assert told("tasks") == [("task-deleted", {"id": 1})]


# When it is published


def test_it_is_published_with_the_commit() -> None:
    with transaction.atomic():
        order = Order.objects.create()
        order.status = "paid"
        order.save()
        assert told("orders") == []
    assert [event for event, _ in told("orders")] == ["order-created", "order-updated"]


@pytest.mark.parametrize(
    "change",
    [
        lambda order: order.save(),
        lambda order: order.delete(),
        lambda order: Order.objects.update(status="paid"),
        lambda order: Order.objects.bulk_create([Order()]),
    ],
    ids=["save", "delete", "update", "bulk_create"],
)
def test_a_rollback_leaves_nothing_of_it(change: Callable[[Order], object]) -> None:
    order = Order.objects.create()
    news = since("orders")
    with transaction.atomic():
        change(order)
        transaction.set_rollback(True)
    assert news() == []


def test_a_delete_that_is_protected_is_not_published() -> None:
    order = Order.objects.create()
    Invoice.objects.create(order=order)
    news = since("orders")
    with pytest.raises(models.ProtectedError):
        order.delete()
    assert news() == []


@pytest.mark.skipif(not postgresql.binaries(), reason="PostgreSQL is not installed")
@pytest.mark.django_db(transaction=True, databases=["default", postgresql.ALIAS])
def test_the_transaction_of_the_model_counts_and_not_that_of_the_store(settings: Settings) -> None:
    settings.DJANGO_SSE = {
        "STORE": {
            "BACKEND": "django_sse.stores.memory.MemoryStore",
            "OPTIONS": {"using": postgresql.ALIAS},
        }
    }
    with transaction.atomic():
        Order.objects.create()
        transaction.set_rollback(True)
    with transaction.atomic():
        order = Order.objects.create()
        assert told("orders") == []
    assert [data["id"] for _, data in told("orders")] == [order.pk]


async def test_it_is_published_from_async_code() -> None:
    order = await Order.objects.acreate()
    order.status = "paid"
    await order.asave()
    await Order.objects.filter(pk=order.pk).aupdate(status="sent")
    await Order.objects.abulk_create([Order(status="bulk")])
    await order.adelete()
    events = await sync_to_async(told)("orders")
    assert [(event, data["status"]) for event, data in events] == [
        ("order-created", "new"),
        ("order-updated", "paid"),
        ("order-updated", "sent"),
        ("order-created", "bulk"),
        ("order-deleted", "paid"),
    ]


# What has been saved


def test_fixtures_are_loaded_in_silence() -> None:
    customer = Customer.objects.create()
    text = serializers.serialize("json", [Order(pk=7, customer=customer)])
    for row in serializers.deserialize("json", text):
        row.save()
    assert Order.objects.count() == 1
    assert told("orders", f"customer-{customer.pk}") == []


def test_what_was_not_saved_is_not_told() -> None:
    order = Order.objects.create()
    order.status, order.count = "unsaved", 5
    order.save(update_fields=["count"])
    [*_, (_, data)] = told("orders")
    assert (data["status"], data["count"]) == ("new", 5)
    news = since("orders")
    order.save(update_fields=[])
    assert news() == []


def test_an_expression_is_told_as_its_value() -> None:
    order = Order.objects.create(count=1)
    order.count = F("count") + 1
    order.save()
    assert told("orders")[-1][1]["count"] == 2


def test_deferred_fields_cost_one_query() -> None:
    Order.objects.create(status="new")
    order = Order.objects.only("count").get()
    order.count = 3
    order.save()
    assert told("orders")[-1][1] == {"id": order.pk, "status": "new", "count": 3}


def test_a_group_that_never_changes_costs_no_query(task: Any) -> None:
    Broadcast("tasks").register(task)
    Broadcast("task-{pk}").register(task)
    one = task.objects.create()
    with queries_about("broadcasts_task") as queries:
        one.save()
    assert len(queries) == 1


# Groups


def test_a_row_that_moves_leaves_its_old_group() -> None:
    first, second = Customer.objects.create(), Customer.objects.create()
    order = Order.objects.create(customer=first)
    order.customer, order.status = second, "moved"
    order.save()
    order.customer = None
    order.save()
    order.delete()
    assert told(f"customer-{first.pk}") == [
        ("order-created", {"id": order.pk or 1, "status": "new"}),
        ("order-deleted", {"id": order.pk or 1, "status": "new"}),
    ]
    assert [event for event, _ in told(f"customer-{second.pk}")] == [
        "order-created",
        "order-deleted",
    ]


def test_a_move_is_seen_by_what_is_in_the_database() -> None:
    first, second = Customer.objects.create(), Customer.objects.create()
    order = Order.objects.create(customer=first)
    # Never loaded, and found by its key.
    Order(pk=order.pk, customer=second).save()
    assert [event for event, _ in told(f"customer-{first.pk}")][-1] == "order-deleted"
    # Not saved.
    order.customer = first
    order.save(update_fields=["status"])
    assert [event for event, _ in told(f"customer-{second.pk}")][-1] == "order-updated"


def test_a_save_reads_the_row_before_once_for_all_broadcasts(task: Any) -> None:
    for kind in "ab":
        Broadcast(f"{kind}-{{title}}").register(task)
    one = task.objects.create(title="x")
    with queries_about("broadcasts_task") as queries:
        one.save()
    assert len(queries) == 2


def test_a_receiver_that_saves_once_more_hides_no_move(task: Any) -> None:
    def save_again(instance: Any, created: bool, **kwargs: Any) -> None:
        assert pickle.loads(pickle.dumps(instance)).title == instance.title
        if not created and not instance.at:
            instance.at = timezone.now()
            instance.save()

    # Asked before the broadcast is.
    post_save.connect(save_again, sender=task)
    Broadcast(lambda task: f"of-{task.title}").register(task)
    one = task.objects.create(title="a")
    one.title = "b"
    one.save()
    assert [event for event, _ in told("of-a")] == ["task-created", "task-deleted"]


def test_a_function_may_name_several_groups() -> None:
    order = Order.objects.create()
    line = Line.objects.create(order=order)
    assert told("lines", f"order-{order.pk}") == [("line-created", {"id": line.pk})] * 2


@pytest.mark.parametrize("none", [None, (), []])
def test_a_function_may_name_none(task: Any, none: Iterable[str] | None) -> None:
    Broadcast(lambda task: none).register(task)
    task.objects.create().delete()


def test_a_row_may_be_for_one_user(task: Any) -> None:
    Broadcast(lambda task: user_group(task.title)).register(task)
    task.objects.create(title="ada")
    assert [event for event, _ in told("sse.user.ada")] == ["task-created"]


def test_each_tenant_has_its_own(settings: Settings) -> None:
    settings.DJANGO_SSE = NAMESPACE
    with entered("north"):
        Order.objects.create()
    assert (len(told("north/orders")), told("south/orders")) == (1, [])


# Models that inherit


def test_a_proxy_is_its_model() -> None:
    order = OrderProxy.objects.create()
    order.save()
    OrderProxy.objects.update(status="paid")
    order.delete()
    assert [event for event, _ in told("orders")] == [
        "order-created",
        "order-updated",
        "order-updated",
        "order-deleted",
    ]


def test_a_parent_hears_of_its_children_once() -> None:
    restaurant = Restaurant.objects.create(name="a", stars=1)
    restaurant.save()
    restaurant.delete()
    Bar.objects.create(name="b").delete()
    changes = ["created", "updated", "deleted"]
    assert [event for event, _ in told("restaurants")] == [f"restaurant-{each}" for each in changes]
    assert [(event, data["name"]) for event, data in told("places")] == [
        *((f"place-{change}", "a") for change in changes),
        ("place-created", "b"),
        ("place-deleted", "b"),
    ]


def test_a_child_hears_of_the_end_of_its_parent() -> None:
    Restaurant.objects.create(name="a")
    Place.objects.all().delete()
    assert [event for event, _ in told("restaurants", "places")] == [
        "restaurant-created",
        "restaurant-deleted",
        "place-created",
        "place-deleted",
    ]


def test_each_model_has_what_its_abstract_base_declares() -> None:
    for model in (Page, Picture, Silent, PageWithParts, DescribedBar):
        model.objects.create()
    assert [event for event, _ in told("described", "places")] == [
        "page-created",
        "picture-created",
        "page-created",
        "describedbar-created",
        "place-created",
    ]


def test_a_model_is_registered_before_and_after_those_that_inherit(new_model: NewModel) -> None:
    plant = new_model("Plant")
    tree = new_model("Tree", plant)
    Broadcast("plants").register(plant)
    flower = new_model("Flower", plant)
    for model in (plant, tree, flower):
        model.objects.create()
    assert [event for event, _ in told("plants")] == ["plant-created"] * 3


def test_what_is_registered_twice_is_published_once(task: Any) -> None:
    broadcast = Broadcast("tasks")
    broadcast.register(task)
    broadcast.register(task)
    task.objects.create()
    assert len(told("tasks")) == 1


# Many at once


def test_bulk_create_publishes_each_in_one_statement() -> None:
    with queries_about('INSERT INTO "django_sse_') as queries:
        Order.objects.bulk_create([Order(status="a"), Order(status="b")])
    assert [(event, data["status"]) for event, data in told("orders")] == [
        ("order-created", "a"),
        ("order-created", "b"),
    ]
    assert all(data["id"] for _, data in told("orders"))
    assert len([query for query in queries if "event" in query]) <= 2


@pytest.mark.parametrize(
    "options",
    [
        {"ignore_conflicts": True},
        {"update_conflicts": True, "update_fields": ["status"], "unique_fields": ["id"]},
    ],
)
def test_bulk_create_refuses_what_it_cannot_tell(options: dict[str, Any]) -> None:
    with pytest.raises(NotSupportedError, match=r"Order\._base_manager"):
        Order.objects.bulk_create([Order(pk=1)], **options)
    assert Order.objects.count() == 0
    Order._base_manager.bulk_create([Order(pk=1)], **options)


def test_update_publishes_each_row_that_it_matches() -> None:
    first, second = Customer.objects.create(), Customer.objects.create()
    orders = [Order.objects.create(customer=first, status=status) for status in "abb"]
    news, of_first, of_second = map(
        since, ("orders", f"customer-{first.pk}", f"customer-{second.pk}")
    )
    matched = Order.objects.annotate(more=F("count") + 2).filter(status="b")
    assert matched.update(status="c", count=F("more"), customer=second) == 2
    expected = dict.fromkeys((orders[1].pk, orders[2].pk), ("c", 2))
    assert {data["id"]: (data["status"], data["count"]) for _, data in news()} == expected
    assert {event for event, _ in news()} == {"order-updated"}
    assert [event for event, _ in of_first()] == ["order-deleted"] * 2
    assert [event for event, _ in of_second()] == ["order-created"] * 2


def test_update_of_many_rows_publishes_all_of_them() -> None:
    Order._base_manager.bulk_create(Order() for _ in range(600))
    assert told("orders") == []
    assert Order.objects.update(status="b") == 600
    entries = async_to_sync(get_store().aread)("orders", 0, 1000)
    assert len({entry.wire for entry in entries}) == 600


def test_update_of_nothing_or_of_a_slice_is_as_in_django() -> None:
    assert Order.objects.filter(pk=0).update(status="b") == 0
    with pytest.raises(TypeError, match="slice"):
        Order.objects.all()[:1].update(status="b")


def test_bulk_update_is_published_by_its_queryset() -> None:
    order = Order.objects.create()
    order.status = "paid"
    Order.objects.bulk_update([order], ["status"])
    assert told("orders")[-1] == ("order-updated", {"id": order.pk, "status": "paid", "count": 0})


def test_a_queryset_without_a_broadcast_is_a_plain_one() -> None:
    queryset: BroadcastQuerySet[Customer] = BroadcastQuerySet(Customer)
    queryset.bulk_create([Customer(pk=1), Customer(pk=2)], ignore_conflicts=True)
    assert queryset.update(password="x") == 2


def test_a_queryset_deletes_aloud_and_so_does_a_cascade() -> None:
    order = Order.objects.create()
    Line.objects.create(order=order)
    Order._base_manager.all().delete()
    assert [event for event, _ in told("orders", "lines")] == [
        "order-created",
        "order-deleted",
        "line-created",
        "line-deleted",
    ]


# What goes wrong


@pytest.mark.parametrize(
    ("group", "serialize", "error"),
    [
        ("tasks", lambda task: 1 / 0, ZeroDivisionError),
        ("tasks", lambda task: {"no JSON": object()}, InvalidEvent),
        (lambda task: "not a group", None, InvalidGroup),
        ("task-{title}", None, InvalidGroup),
    ],
)
def test_what_cannot_be_published_is_not_saved(
    task: Any, group: Any, serialize: Any, error: type[Exception]
) -> None:
    Broadcast(group, serialize=serialize).register(task)
    with pytest.raises(error), transaction.atomic():
        task.objects.create(title="no group")
    assert task.objects.count() == 0


@pytest.mark.parametrize("store", ["database", "memory"])
@pytest.mark.parametrize("atomic", [True, False])
def test_a_cancelled_group_breaks_no_save(store: str, atomic: bool, settings: Settings) -> None:
    settings.DJANGO_SSE = {"STORE": store}
    order = Order.objects.create()
    cancel(f"order-{order.pk}")
    with transaction.atomic() if atomic else nullcontext():
        Line.objects.create(order=order)
    assert [event for event, _ in told("lines")] == ["line-created"]


@pytest.mark.parametrize(
    ("arguments", "options", "says"),
    [
        (["no group"], {}, "no group"),
        (["orders"], {"fields": "status"}, r"give \['status'\]"),
        (["orders"], {"events": "created"}, r"give \['created'\]"),
        (["orders"], {"events": ["changed"]}, "created, updated, deleted"),
        (["orders"], {"events": []}, "created, updated, deleted"),
        (["orders"], {"fields": ["a"], "template": "a.html"}, "not several"),
    ],
)
def test_wrong_arguments_are_refused(
    arguments: list[Any], options: dict[str, Any], says: str
) -> None:
    with pytest.raises(ImproperlyConfigured, match=says):
        Broadcast(*arguments, **options)


@pytest.mark.parametrize(
    ("broadcast", "says"),
    [
        (Broadcast("orders", fields=["stat"]), "names 'stat', .*status"),
        (Broadcast("customer-{buyer}"), "names 'buyer'"),
        (Broadcast("orders", fields=["line"]), "names 'line'"),
    ],
)
def test_a_field_that_is_not_there_is_refused_with_the_model(
    broadcast: Broadcast, says: str
) -> None:
    with pytest.raises(ImproperlyConfigured, match=says):
        broadcast.register(Order)


def test_a_field_that_is_true_or_false_makes_no_group() -> None:
    with pytest.raises(ImproperlyConfigured, match="function of the instance"):

        class Flagged(models.Model):
            flag = models.BooleanField()
            broadcasts = Broadcast("flag-{flag}")

            class Meta:
                app_label = "broadcasts"

            def __str__(self) -> str:
                return ""


def test_a_proxy_and_an_abstract_model_are_refused() -> None:
    with pytest.raises(ImproperlyConfigured, match=r"OrderProxy is a proxy: .* on its model"):
        Broadcast("orders").register(OrderProxy)
    with pytest.raises(ImproperlyConfigured, match="Described is abstract"):
        Broadcast("orders").register(Described)
    with pytest.raises(ImproperlyConfigured, match="is a proxy"):

        class Declared(Order):
            broadcasts = Broadcast("orders")

            class Meta:
                proxy = True
                app_label = "broadcasts"


# A project of its own

PROJECT = """
import django
from django.conf import settings

settings.configure(
    INSTALLED_APPS=["django_sse", "shop"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "db.sqlite3"}},
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
)
django.setup()

from asgiref.sync import async_to_sync
from django.core.management import call_command
from shop.models import Order
from django_sse.stores import get_store

call_command("makemigrations", "shop", verbosity=0)
call_command("migrate", verbosity=0)
order = Order.objects.create()
order.delete()
print(b"".join(entry.wire for entry in async_to_sync(get_store().aread)("orders", 0, 9)).decode())
"""

SHOP = """
import sys
from django.db import models
from django_sse.broadcasts import Broadcast

assert "django_sse.views" not in sys.modules


class Order(models.Model):
    broadcasts = Broadcast("orders")
"""


def test_a_project_without_users_declares_it_in_its_models(tmp_path: Path) -> None:
    shop = tmp_path / "shop"
    (shop / "migrations").mkdir(parents=True)
    for path in (shop, shop / "migrations"):
        (path / "__init__.py").touch()
    (shop / "models.py").write_text(SHOP)
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning", "-c", PROJECT],
        cwd=tmp_path,
        env={"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[1]}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [
        *("event:", "order-created", "data:", '{"id":1}'),
        *("event:", "order-deleted", "data:", '{"id":1}'),
    ]
