"""Groups, what may be done about them, and a live monitor, in Django's admin.

Django imports this module where ``django.contrib.admin`` is installed.
"""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar, Final

from asgiref.sync import sync_to_async
from django import forms
from django.contrib import admin, messages
from django.contrib.admin.utils import quote, unquote
from django.contrib.auth import get_user_model
from django.core.exceptions import PermissionDenied, ValidationError
from django.core.handlers.asgi import ASGIRequest
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.http.response import HttpResponseBase
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html

from django_sse.access.owners import Owner
from django_sse.event import decode_block
from django_sse.exceptions import GroupCancelled, InvalidEvent, InvalidGroup
from django_sse.groups.names import validate_group
from django_sse.groups.namespaces import current_namespace, full_name, plain_name
from django_sse.groups.position import format_position
from django_sse.http.cors import is_foreign
from django_sse.logs import logger
from django_sse.mixins import UserPassesTestMixin
from django_sse.models import EventGroup, StoredEvent
from django_sse.monitoring import processes
from django_sse.publishing import cancel, publish, reopen
from django_sse.stores import get_store
from django_sse.stores.database import DatabaseStore
from django_sse.stores.database.listing import of_tenant
from django_sse.streaming.reports import REPORTS
from django_sse.views import EventStreamView

if TYPE_CHECKING:
    _ModelAdmin = admin.ModelAdmin[EventGroup]
else:
    _ModelAdmin = admin.ModelAdmin

_EVENTS_PER_PAGE: Final = 25
# How much of an event's data a page shows.
_SHOWN_CHARACTERS: Final = 2000
_PRIMARY_KEY: Final = "pk"
_LONGEST_NAME: Final = 99
_TEMPLATES: Final = "admin/django_sse/eventgroup"


class _ActionForm(forms.Form):
    """What an admin can do: its fields, and what it does with them."""

    title: ClassVar[str]
    warning: ClassVar[str] = ""
    """What it ends, to be confirmed before; empty if it ends nothing."""

    def said(self) -> dict[str, str]:
        """Return what was filled in, by the label of its field."""
        return {
            str(field.label): str(self.cleaned_data[field.name])
            for field in self
            if self.cleaned_data[field.name]
        }

    def act(self) -> tuple[Model, str]:
        """Do it.

        Returns:
            The group or user that it was done to, and what the admin's log says.

        Raises:
            GroupCancelled, InvalidEvent: It cannot be done.
            Exception: The event store could not be written.
        """
        raise NotImplementedError


class _GroupForm(_ActionForm):
    """An action on a group of the current tenant."""

    group = forms.CharField(max_length=_LONGEST_NAME)

    def clean_group(self) -> str:
        try:
            return validate_group(self.cleaned_data["group"])
        except InvalidGroup as error:
            raise ValidationError(str(error)) from error

    def _done(self, said: str) -> tuple[Model, str]:
        return _row_of(self.cleaned_data["group"]), said


class _PushForm(_GroupForm):
    title = "Push event"

    type = forms.CharField(
        required=False, help_text="Without a type, it is a <code>message</code>."
    )
    text = forms.CharField(required=False, strip=False, label="Data", widget=forms.Textarea)
    is_json = forms.BooleanField(required=False, label="The data is JSON")

    def clean(self) -> None:
        if self.cleaned_data.get("is_json"):
            try:
                value = json.loads(self.cleaned_data.get("text", ""))
                self.cleaned_data["text"] = json.dumps(value, ensure_ascii=False, allow_nan=False)
            except (ValueError, RecursionError) as error:
                self.add_error("text", f"This is not JSON: {error}")

    def act(self) -> tuple[Model, str]:
        group, text = self.cleaned_data["group"], self.cleaned_data["text"]
        published = publish(group, text, event=self.cleaned_data["type"] or None)
        return self._done(f"Pushed an event to {group}: {published.id or 'on commit'}.")


class _CancelForm(_GroupForm):
    title = "Cancel"
    warning = "All streams of the group end, and its clients are answered 204 until it is reopened."

    reason = forms.CharField(required=False, help_text="Sent to the clients.")

    def act(self) -> tuple[Model, str]:
        group, reason = self.cleaned_data["group"], self.cleaned_data["reason"]
        cancel(group, reason=reason or None)
        return self._done(f"Cancelled {group}{_because(reason)}.")


class _StopForm(_CancelForm):
    title = "Stop producer"
    warning = (
        "The producer of the group stops, wherever it runs, and the group is cancelled: its "
        "streams end."
    )

    reason = forms.CharField(required=False, initial="stopped", help_text="Sent to the clients.")


class _ReopenForm(_GroupForm):
    title = "Reopen"

    def act(self) -> tuple[Model, str]:
        group = self.cleaned_data["group"]
        reopen(group)
        return self._done(f"Reopened {group}.")


class _UserForm(_ActionForm):
    """An action on a user."""

    by = forms.ChoiceField(label="Find the user by")
    user = forms.CharField()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        name = get_user_model().USERNAME_FIELD
        label = get_user_model()._meta.get_field(name).verbose_name  # type: ignore[union-attr]
        choices: Any = [(name, label), (_PRIMARY_KEY, "primary key")]
        self.fields["by"].choices = choices  # type: ignore[attr-defined]

    def clean(self) -> None:
        by, value = self.cleaned_data.get("by"), self.cleaned_data.get("user")
        if not by or not value:
            return
        # Not the default manager, which may hide users who are out.
        users = get_user_model()._base_manager
        try:
            self.found: Any = users.get(**{by: value})
        except (users.model.DoesNotExist, ValueError, ValidationError):
            self.add_error("user", "There is no such user.")

    def said(self) -> dict[str, str]:
        return {**super().said(), "User": f"{self.found} ({self.found.pk})"}


class _EndUserForm(_UserForm):
    title = "End user's streams"
    warning = (
        "All streams of the user end, in all processes, and the user gets no new one until the "
        "next login."
    )

    reason = forms.CharField(required=False, help_text="Sent to the clients.")

    def act(self) -> tuple[Model, str]:
        reason = self.cleaned_data["reason"]
        cancel(user=self.found, reason=reason or None)
        return self.found, f"Ended the streams of {self.found}{_because(reason)}."


class _LetInForm(_UserForm):
    title = "Let user in"

    def act(self) -> tuple[Model, str]:
        reopen(user=self.found)
        return self.found, f"Let {self.found} in again."


_ACTIONS: Final[dict[str, type[_ActionForm]]] = {
    "push": _PushForm,
    "cancel": _CancelForm,
    "reopen": _ReopenForm,
    "stop": _StopForm,
    "end-user": _EndUserForm,
    "let-in": _LetInForm,
}


class _Monitor(UserPassesTestMixin, EventStreamView):
    """Streams the reports of all processes to those who may see the monitor of an admin site."""

    # The admin's pages alone have a use for it.
    channel_messages = False
    model_admin: "EventGroupAdmin | None" = None

    async def test_func(self) -> bool:
        """Return whether the client may see the monitor. It has to be a page of this origin."""
        return not is_foreign(self.request) and await sync_to_async(self._is_allowed)()

    async def get_groups(self) -> list[str]:
        """Return the group of the reports."""
        return [REPORTS]

    def _is_allowed(self) -> bool:
        assert self.model_admin is not None
        may_enter = self.model_admin.admin_site.has_permission(self.request)
        return bool(may_enter and self.model_admin.has_monitor_permission(self.request))

    async def _allowed_groups(self) -> list[str] | HttpResponseBase:
        # Those that tenants have cannot have its name.
        return await self.get_groups()

    async def _owner(self, user: Any, groups: Sequence[str]) -> tuple[str, Owner]:
        # In no tenant, but with the owner's keys there.
        return "", (await super()._owner(user, ()))[1]


@admin.register(EventGroup)
class EventGroupAdmin(_ModelAdmin):
    """The groups of the current tenant, actions, and the monitor of all processes.

    Viewing needs the permission ``django_sse.view_eventgroup``, acting
    ``django_sse.change_eventgroup``. Only the database store can list groups.
    """

    list_display = ("group", "is_open", "streams", "kept", "is_produced", "last_change", "last_id")
    list_filter = ("cancelled",)
    search_fields = ("name",)
    ordering = ("-changed",)

    # Permissions

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Return False: a group begins with its first event."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: EventGroup | None = None) -> bool:
        """Return False: its numbers would begin anew, and its clients lose their place."""
        return False

    def has_monitor_permission(self, request: HttpRequest) -> bool:
        """Return whether the user may see the monitor, whose figures are those of all tenants.

        By default, all who may view groups, but nobody in a tenant.
        """
        return self.has_view_permission(request) and not current_namespace()

    # The list

    def get_queryset(self, request: HttpRequest) -> QuerySet[EventGroup]:
        """Return the groups of the current tenant, without those of owners and of the library."""
        store = get_store()
        rows = super().get_queryset(request).using(store.using)
        if not isinstance(store, DatabaseStore):
            return rows.none()
        return of_tenant(rows, current_namespace())

    @admin.display(ordering="name")
    def group(self, row: EventGroup) -> str:
        return plain_name(row.name)

    @admin.display(description="open", boolean=True, ordering="cancelled")
    def is_open(self, row: EventGroup) -> bool:
        return not row.cancelled

    @admin.display(ordering="head")
    def last_id(self, row: EventGroup) -> str:
        return _id_of(row.name, row.head) if row.head else "-"

    @admin.display(ordering="changed")
    def last_change(self, row: EventGroup) -> datetime:
        return _time(row.changed)

    @admin.display(description="kept events")
    def kept(self, row: EventGroup) -> int:
        return int(row.kept_events)  # type: ignore[attr-defined]

    @admin.display(description="producer", ordering="producer")
    def is_produced(self, row: EventGroup) -> str:
        return "yes" if row.producer else "-"

    @admin.display(description="streams now")
    def streams(self, row: EventGroup) -> str:
        return format_html('<span data-streams-of="{}">-</span>', row.name)

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        return super().changelist_view(
            request, {**self._context(request), "title": "Event groups", **(extra_context or {})}
        )

    # The pages

    def get_urls(self) -> list[URLPattern]:
        def page(route: str, view: Any, name: str, **kwargs: str) -> URLPattern:
            guarded: Any = self.admin_site.admin_view(view)
            made: URLPattern = path(route, guarded, kwargs, self._url_name(name))
            return made

        stream = _Monitor.as_view(model_admin=self)
        return [
            page("monitor/", self.monitor_view, "monitor"),
            path("monitor/stream/", stream, name=self._url_name("stream")),
            *(page(f"{name}/", self.action_view, name, action=name) for name in _ACTIONS),
            *super().get_urls(),
        ]

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        """Show a group and its events, the newest first."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        row = self.get_object(request, unquote(object_id))
        if row is None:
            missing: Any = self._get_obj_does_not_exist_redirect  # type: ignore[attr-defined]
            return missing(request, self.opts, object_id)  # type: ignore[no-any-return]
        events = StoredEvent.objects.using(get_store().using).filter(group=row.name)
        page = self.get_paginator(request, events.order_by("-number"), _EVENTS_PER_PAGE).get_page(
            request.GET.get("p")
        )
        return self._page(
            request,
            "group",
            title=plain_name(row.name),
            group=row,
            last_id=self.last_id(row),
            history_url=self._url("history", quote(row.pk)),
            last_change=_time(row.changed),
            page=page,
            events=[_shown(event) for event in page],
            **(extra_context or {}),
        )

    def action_view(self, request: HttpRequest, action: str) -> HttpResponse:
        """Ask for what an action needs, have it confirmed if it ends something, and do it."""
        if not self.has_change_permission(request):
            raise PermissionDenied
        kind = _ACTIONS[action]
        if request.method != "POST":
            initial = {"group": request.GET["group"]} if "group" in request.GET else {}
            return self._page(request, "action", title=kind.title, form=kind(initial=initial))
        form = kind(request.POST)
        if form.is_valid():
            if kind.warning and "confirmed" not in request.POST:
                return self._page(request, "confirm", title=kind.title, form=form)
            try:
                target, said = form.act()
            except (GroupCancelled, InvalidEvent) as error:
                form.add_error(None, str(error))
            except Exception as error:
                logger.exception("An action of the admin has failed.")
                form.add_error(None, f"The event store did not take it: {type(error).__name__}.")
            else:
                self.log_change(request, target, said)  # type: ignore[arg-type]
                self.message_user(request, said, messages.SUCCESS)
                return HttpResponseRedirect(self._url_after(request, target))
        return self._page(request, "action", title=kind.title, form=form)

    def monitor_view(self, request: HttpRequest) -> HttpResponse:
        """Show what all processes report: live, or over WSGI, which cannot stream, as of now."""
        if not self.has_monitor_permission(request):
            raise PermissionDenied
        is_live = isinstance(request, ASGIRequest)
        return self._page(
            request,
            "monitor",
            title="Monitor",
            is_live=is_live,
            processes=() if is_live else processes(),
        )

    def _page(self, request: HttpRequest, template: str, **context: Any) -> HttpResponse:
        request.current_app = self.admin_site.name
        context = {**self.admin_site.each_context(request), **self._context(request), **context}
        return TemplateResponse(request, f"{_TEMPLATES}/{template}.html", context)

    def _context(self, request: HttpRequest) -> dict[str, Any]:
        actions = _ACTIONS.items() if self.has_change_permission(request) else ()
        sees_monitor = self.has_monitor_permission(request)
        return {
            "opts": self.opts,
            "changelist_url": self._url("changelist"),
            "actions": [(name, self._url(name), form.title) for name, form in actions],
            "monitor_url": self._url("monitor") if sees_monitor else "",
            "stream_url": self._url("stream") if sees_monitor else "",
            "lists_groups": isinstance(get_store(), DatabaseStore),
        }

    def _url_after(self, request: HttpRequest, target: Model) -> str:
        is_group = isinstance(target, EventGroup)
        if is_group and self.get_queryset(request).filter(pk=target.pk).exists():
            return self._url("change", quote(target.pk))
        return self._url("changelist")

    def _url(self, name: str, *arguments: str) -> str:
        at = f"admin:{self._url_name(name)}"
        return reverse(at, args=arguments, current_app=self.admin_site.name)

    def _url_name(self, name: str) -> str:
        return f"{self.opts.app_label}_{self.opts.model_name}_{name}"


def _row_of(group: str) -> EventGroup:
    return EventGroup(name=full_name(current_namespace(), group))


def _because(reason: str) -> str:
    return f": {reason}" if reason else ""


def _id_of(group: str, number: int) -> str:
    """Return the id in a stream of the group alone."""
    return format_position({group: number})


def _time(microseconds: int) -> datetime:
    return datetime.fromtimestamp(microseconds / 1_000_000, UTC)


def _shown(row: StoredEvent) -> dict[str, Any]:
    event = decode_block(bytes(row.wire))
    return {
        "id": _id_of(row.group, row.number),
        "time": _time(row.created),
        "type": event.event or "message",
        "data": event.text[:_SHOWN_CHARACTERS],
        "cut": max(len(event.text) - _SHOWN_CHARACTERS, 0),
        "is_for_all": not row.exclude,
    }
