"""Streams in the schemas of drf-spectacular."""

from inspect import cleandoc
from typing import Any, ClassVar, Final

from drf_spectacular.extensions import OpenApiSerializerExtension, OpenApiViewExtension
from drf_spectacular.plumbing import ResolvedComponent
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema

from django_sse.schemas import schemas_of

_COMPONENTS: Final = "#/components/schemas/"
_DESCRIPTION: Final = "A stream of server-sent events; 204 once it is over."


class _Events:
    """The events of a view, for the extension below."""

    name: ClassVar[str]
    types: ClassVar[dict[str, Any]]


class _EventsExtension(OpenApiSerializerExtension):  # type: ignore[no-untyped-call]
    target_class = _Events
    match_subclasses = True

    def get_name(self, auto_schema: Any, direction: Any) -> str:
        return str(self.target.name)

    def map_serializer(self, auto_schema: Any, direction: Any) -> dict[str, Any]:
        types = self.target.types
        schemas, definitions = schemas_of(list(types.values()), _COMPONENTS)
        for name, schema in definitions.items():
            component = ResolvedComponent(  # type: ignore[no-untyped-call]
                name=name, type=ResolvedComponent.SCHEMA, object=name, schema=schema
            )
            auto_schema.registry.register_on_missing(component)
        events = [_event(event, schema) for event, schema in zip(types, schemas, strict=True)]
        return {"oneOf": events}


class _ViewExtension(OpenApiViewExtension):  # type: ignore[no-untyped-call]
    target_class = "django_sse.contrib.rest_framework.EventStreamAPIView"
    match_subclasses = True

    def view_replacement(self) -> Any:
        view: Any = self.target
        options = getattr(self.target_callback, "initkwargs", {})
        types = options.get("event_types", view.event_types)
        name = view.__name__.removesuffix("View") + "Events"
        response = OpenApiResponse(
            type("_EventsOfView", (_Events,), {"name": name, "types": types})
            if types
            else {"type": "string"},
            description="The events, as they come.",
        )

        class Documented(view):  # type: ignore[misc]
            def get_renderers(self) -> list[Any]:
                # The others render refusals.
                return list(super().get_renderers()[:1])

            @extend_schema(
                description=cleandoc(vars(view).get("__doc__") or _DESCRIPTION),
                parameters=[
                    OpenApiParameter(
                        "Last-Event-ID",
                        OpenApiTypes.STR,
                        OpenApiParameter.HEADER,
                        description="The id of the last event that the client has received.",
                    )
                ],
                responses={(200, "text/event-stream"): response, 204: None},
            )
            async def get(self, request: Any, *args: Any, **kwargs: Any) -> Any:
                return await super().get(request, *args, **kwargs)

            @extend_schema(description="End the stream for all.", responses={204: None})
            async def delete(self, request: Any, *args: Any, **kwargs: Any) -> Any:
                return await super().delete(request, *args, **kwargs)

        return Documented


def _event(name: str, data: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of an event as clients have it, with its data parsed."""
    return {
        "type": "object",
        "properties": {
            # Within `allOf`, where no hook makes a component of each enum.
            "event": {"allOf": [{"type": "string", "enum": [name]}]},
            "data": data,
            "id": {"type": "string"},
        },
        "required": ["event", "data"],
    }
