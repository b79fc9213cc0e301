"""What the buttons of a recipe's page do."""

from collections.abc import Callable
from functools import wraps

from django.http import HttpRequest, HttpResponse
from django.views.decorators.http import require_POST

from django_sse import GroupCancelled, InvalidEvent


def action(act: Callable[[HttpRequest], None]) -> Callable[[HttpRequest], HttpResponse]:
    """Make a view of what a button does: POST alone, answered 204, 409 if it is too late, or 400
    if it is too long."""

    @require_POST
    @wraps(act)
    def view(request: HttpRequest) -> HttpResponse:
        try:
            act(request)
        except GroupCancelled as error:
            return HttpResponse(str(error), "text/plain", status=409)
        except InvalidEvent as error:
            return HttpResponse(str(error), "text/plain", status=400)
        return HttpResponse(status=204)

    return view
