"""The recipe for django-ninja in ``docs/frameworks.md``."""

from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import AsyncClient, override_settings
from django.urls import path
from pytest_django import Settings
from rest_framework.authtoken.models import Token

from tests.docs.pages import blocks
from tests.streams import goes_on, reading


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("everything_ends")
async def test_an_operation_streams_to_who_has_a_token_while_that_is_one(
    settings: Settings,
) -> None:
    settings.DJANGO_SSE = {"STORE": "memory", "RECHECK_INTERVAL": 1}
    [recipe] = [code for code in blocks("python", "docs/frameworks.md") if "NinjaAPI" in code]
    defined: dict[str, Any] = {"__name__": "recipe", "Token": Token}
    exec(compile(recipe, "docs/frameworks.md", "exec"), defined)

    class Urls:
        urlpatterns = [path("api/", defined["api"].urls)]

    token = await Token.objects.acreate(user=await User.objects.acreate_user("ada"))
    headers = {"Authorization": f"Bearer {token.key}"}
    with override_settings(ROOT_URLCONF=Urls):
        client = AsyncClient()
        assert (await client.get("/api/news/")).status_code == 401
        wrong = await client.get("/api/news/", headers={"Authorization": "Bearer no"})
        assert wrong.status_code == 401
        async with reading(await client.get("/api/news/", headers=headers)) as stream:
            await goes_on(stream)
            await Token.objects.all().adelete()
            [close] = await stream.rest()
            assert close.json() == {"reason": "not allowed any more"}
        assert (await client.get("/api/news/", headers=headers)).status_code == 401
