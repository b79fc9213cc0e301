"""Publishing by HTTP, for services in other languages. It is off until a project routes a view."""

from django_sse.contrib.http_publish.views import MercurePublishView, PublishView

__all__ = ["MercurePublishView", "PublishView"]
