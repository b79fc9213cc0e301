"""The actions behind the buttons of a recipe's page."""

from collections.abc import Callable
from functools import wraps

from django.http import HttpRequest, HttpResponse
from django.views.decorators.http import require_POST

from django_sse import GroupCancelled, InvalidEvent


def action(act: Callable[[HttpRequest], None]) -> Callable[[HttpRequest], HttpResponse]:
    """Turn the action of a button into a view.

    It takes only POST. It answers 204, 409 if the group is cancelled, or 400 if the event is
    invalid.
    """

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
