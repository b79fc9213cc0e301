from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError
from django.urls import URLPattern, get_resolver

from django_sse.http.base_view import StreamView
from django_sse.management.typescript import declaration, identifier, members, type_of
from django_sse.schemas import schemas_of
from django_sse.type_checks import declarations


class Command(BaseCommand):
    help = (
        "Writes the types of the events of this project's views as TypeScript, for EventStream: an "
        "interface for each type, and one for each view."
    )

    def handle(self, *args: Any, **options: Any) -> None:
        views = _views()
        if not views:
            raise CommandError(
                "No view of the project's URLs declares `event_types`, such as "
                '`event_types = {"headline": Headline}`.'
            )
        declared = [kind for types in views.values() for kind in types.values()]
        try:
            schemas, definitions = schemas_of(declared)
        except ImproperlyConfigured as error:
            raise CommandError(str(error)) from error
        kinds = map(type_of, schemas)
        parts = [declaration(name, schema) for name, schema in sorted(definitions.items())]
        for name, types in views.items():
            if name in map(identifier, definitions):
                raise CommandError(f"A type is named {name}, as the events of a view. Rename it.")
            events = {event: next(kinds) for event in types}
            parts.append(f"export interface {name} {members(events)}\n")
        self.stdout.write("// Written by `manage.py sse_types`.\n\n" + "\n".join(parts))


def _views() -> dict[str, dict[str, Any]]:
    """Return what the views of the URLconf declare, by the names of the interfaces.

    Raises:
        CommandError: Two views have the same name.
    """
    found: dict[str, dict[str, Any]] = {}
    owners: dict[str, Any] = {}
    for declared in declarations(get_resolver()):
        view, types = declared.view, declared.types
        name = _interface_of(view, declared.url)
        if owners.setdefault(name, (view, types)) != (view, types):
            raise CommandError(
                f"Two views would both be {name}: {owners[name][0].__module__} and "
                f"{view.__module__} have one each. Rename one of them."
            )
        found[name] = dict(types)
    return found


def _interface_of(view: type[StreamView], url: URLPattern) -> str:
    # What is used as it is has only the name of its URL.
    own = view not in view._bases()
    name = view.__name__.removesuffix("View") if own else url.name or ""
    words = identifier(name).split("_")
    return "".join(word[:1].upper() + word[1:] for word in words) + "Events"
