"""The store in Redis: on one server, in a Redis Cluster, or where Sentinels say.

Only ``django_sse.stores`` imports this package, by the store's path.
"""

from django.core.exceptions import ImproperlyConfigured

try:
    from django_sse.stores.redis.store import RedisStore
except ImportError as error:
    raise ImproperlyConfigured(
        f"The redis store needs redis-py ({error}): pip install 'redis>=5.2'."
    ) from error

__all__ = ["RedisStore"]
