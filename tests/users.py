"""Users, and browsers that they have logged in with."""

from django.contrib.auth.models import User
from django.test import AsyncClient


async def user(name: str = "ada") -> User:
    """Return the user of that name, a new one where there is none."""
    return (await User.objects.aget_or_create(username=name))[0]


async def logged_in(name: str = "ada") -> AsyncClient:
    """Return a browser with a session of its own."""
    client = AsyncClient()
    await client.aforce_login(await user(name))
    return client
