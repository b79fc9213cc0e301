"""The groups that a user may be shown: not those of owners, of the library, or of other tenants."""

from django.db.models import F, OuterRef, QuerySet, Subquery
from django.db.models.functions import Coalesce, Left

from django_sse.groups.names import OWNER_PREFIX
from django_sse.groups.namespaces import full_name, prefix_of
from django_sse.models import EventGroup, StoredEvent


def of_tenant(rows: QuerySet[EventGroup], namespace: str) -> QuerySet[EventGroup]:
    """Return those of some rows that are a tenant's, with ``kept_events``.

    Args:
        rows: Rows of the store's database.
        namespace: The tenant; "" if tenants are not kept apart.
    """
    if prefix := prefix_of(full_name(namespace, "any")):
        # Not `startswith`, for which SQLite takes a for A.
        rows = rows.alias(tenant=Left("name", len(prefix))).filter(tenant=prefix)
    else:
        rows = rows.exclude(name__contains="/").exclude(name__startswith=OWNER_PREFIX)
    events = StoredEvent.objects.using(rows.db).filter(group=OuterRef("name"))
    oldest = Subquery(events.order_by("number").values("number")[:1])
    return rows.annotate(kept_events=F("head") + 1 - Coalesce(oldest, F("head") + 1))
