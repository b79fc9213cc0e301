"""A view that says whether events arrive, for load balancers and monitoring systems."""

from collections.abc import Callable
from functools import lru_cache, partial
from math import isfinite
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db import transaction
from django.http import HttpRequest, JsonResponse
from django.views import View

from django_sse.concurrency.shared_answers import SharedAnswer
from django_sse.streaming.trial import Health, try_delivery


class HealthView(View):
    """Answers 200 if an event that it publishes can be read and is heard of, or else 503.

    The event goes through the event store and the doorbell, as from another process. It needs no
    stream. The JSON names the part that has failed (``write``, ``read`` or ``doorbell``) and the
    seconds that it took; the log says why. All requests of a second get the same answer.
    """

    timeout: float = 2.0
    """How many seconds the check may take, in all."""

    @classmethod
    def as_view(cls, **initkwargs: Any) -> Callable[..., Any]:
        """Return the view, exempt from ``ATOMIC_REQUESTS``.

        Raises:
            ImproperlyConfigured: ``timeout`` is not a number of seconds above 0.
        """
        timeout = initkwargs.get("timeout", cls.timeout)
        is_number = isinstance(timeout, int | float) and not isinstance(timeout, bool)
        if not (is_number and isfinite(timeout) and timeout > 0):
            raise ImproperlyConfigured(
                f"{cls.__name__}.timeout must be a number of seconds above 0, not {timeout!r}."
            )
        return transaction.non_atomic_requests(super().as_view(**initkwargs))

    async def get(self, request: HttpRequest, *args: Any, **kwargs: Any) -> JsonResponse:
        """Answer with the result of the check."""
        health = await _answer(self.timeout).get()
        return JsonResponse(
            {
                "status": "failed" if health.failed else "ok",
                **({"failed": health.failed} if health.failed else {}),
                "seconds": round(health.seconds, 3),
            },
            status=503 if health.failed else 200,
            headers={"Cache-Control": "no-store"},
        )


@lru_cache
def _answer(timeout: float) -> SharedAnswer[Health]:
    return SharedAnswer(partial(try_delivery, timeout))
