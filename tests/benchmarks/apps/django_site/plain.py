"""A plain async view that knows who asks, which a connect is compared with."""

from django.http import HttpRequest, HttpResponse


async def ok(request: HttpRequest) -> HttpResponse:
    user = await request.auser()
    return HttpResponse("ok" if user.is_authenticated else "nobody")
