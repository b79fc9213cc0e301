"""The logins that streams are opened in, and whether they and their sessions still hold, as Django
judges."""

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from asgiref.sync import sync_to_async
from django.conf import settings
from django.contrib.auth import SESSION_KEY, get_user_model, load_backend
from django.contrib.sessions.backends.base import SessionBase
from django.contrib.sessions.backends.cache import SessionStore as CacheSession
from django.contrib.sessions.backends.cached_db import SessionStore as CachedDatabaseSession
from django.contrib.sessions.backends.db import SessionStore as DatabaseSession
from django.core.cache import caches
from django.core.exceptions import ImproperlyConfigured, ObjectDoesNotExist, ValidationError
from django.db import close_old_connections, router
from django.db.models import Model
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.utils import timezone
from django.utils.crypto import constant_time_compare
from django.utils.functional import LazyObject, SimpleLazyObject, cached_property

from django_sse.access.owners import Login, is_nobody, loaded, owner_key_of, user_key
from django_sse.concurrency.tasks import must_propagate
from django_sse.logs import log_once, logger

Item = TypeVar("Item")
Found = TypeVar("Found", bound=Collection[str])

# Users or sessions in one query.
_BATCH: Final = 500
# A key by which a cache shows that it is there.
_PROBE: Final = "django_sse.probe"
# Properties that keep what they were worked out to be.
_CACHED: Final = (functools.cached_property, cached_property)
# The module of the middleware that sets `user` and `auser`, and that of `login()`, which sets them
# since Django 6.1.
_DJANGOS: Final = "django.contrib.auth.middleware"
_LOGINS: Final = "django.contrib.auth"
# Where a request keeps whether another middleware has set another user.
_IS_REPLACED: Final = "_django_sse_replaces_user"
# How long a backend may take to find a user.
_ANSWER_SECONDS: Final = 10.0


@dataclass(slots=True)
class LoginCheck:
    """The logins that do not hold any more, or perhaps not."""

    absent: set[Login] = field(default_factory=set)
    """Their user was not found, which once says nothing."""
    gone: set[Login] = field(default_factory=set)
    """Their user may not log in any more, as one who is not active."""
    changed: set[Login] = field(default_factory=set)
    """Their session was made with another password."""


def check_logins(logins: Collection[Login]) -> LoginCheck:
    """Check logins of users whom Django's ModelBackend finds. Blocking: for a thread.

    Raises:
        Exception: The users could not be read.
    """
    close_old_connections()
    try:
        users = _users({login.user for login in logins})
    finally:
        close_old_connections()
    checked = LoginCheck()
    failed = False
    for login in logins:
        user = users.get(login.user)
        try:
            if user is None:
                checked.absent.add(login)
            elif not _may_log_in(user, login):
                checked.gone.add(login)
            elif not _has_hash(user, login.session_hash):
                checked.changed.add(login)
        except BaseException as error:
            if must_propagate(error):
                raise
            # Nobody else's login is harmed; the next request of this one shows what is wrong.
            checked.changed.add(login)
            if not failed:
                logger.exception("A login cannot be checked, so its clients are sent back.")
            failed = True
    return checked


async def acheck_with_backend(login: Login) -> LoginCheck:
    """Check a login of a user whom its backend finds in a way of its own.

    Raises:
        TimeoutError: The backend has taken more than ten seconds.
        Exception: It could not look for the user.
    """
    checked = LoginCheck()
    async with asyncio.timeout(_ANSWER_SECONDS):
        user = await _user_of_backend(login)
    if user is None:
        checked.absent.add(login)
    elif not _has_hash(user, login.session_hash):
        checked.changed.add(login)
    return checked


def finds_users_itself(path: str) -> bool:
    """Whether a backend finds users in another way than Django's ModelBackend."""
    # Not above: it imports models, which a project without users does not have.
    from django.contrib.auth.backends import ModelBackend

    backend = type(_backend(path))
    names = ("get_user", "aget_user")
    ours = [getattr(backend, name, None) for name in names]
    return any(method and method not in vars(ModelBackend).values() for method in ours)


def without_session(logins: Collection[Login]) -> set[Login]:
    """Return the logins whose session is gone, or has another key now. Blocking: for a thread.

    Raises:
        Exception: The sessions could not be read.
    """
    keys: dict[type[SessionBase], set[str]] = {}
    for login in logins:
        if login.session_store and login.session_key:
            keys.setdefault(login.session_store, set()).add(login.session_key)
    close_old_connections()
    try:
        gone = {(store, key) for store in keys for key in keys[store] - _found(store, keys[store])}
    finally:
        close_old_connections()
    return {login for login in logins if (login.session_store, login.session_key) in gone}


def _found(store: type[SessionBase], keys: Collection[str]) -> set[str]:
    """Return the keys of the sessions that are there, as Django would find them."""
    in_rows = _reads_as(store, DatabaseSession) or _reads_as(store, CachedDatabaseSession)
    in_cache = _reads_as(store, CacheSession) or _reads_as(store, CachedDatabaseSession)
    if not in_rows and not in_cache:
        session = store()

        def ask() -> set[str]:
            return {key for key in keys if session.exists(key)}

        return _asked_of_cache(ask) if issubclass(store, CacheSession) else ask()
    found: set[str] = set()
    if in_rows:
        found.update(_in_rows(store, list(keys)))
    if in_cache:
        found.update(_in_cache(store, list(set(keys) - found)))
    return found


def _reads_as(store: Any, engine: type[SessionBase]) -> bool:
    """Whether an engine looks for sessions where one of Django's does."""
    names = ("load", "cache_key", "_get_session_from_db")
    return all(getattr(store, name, None) is getattr(engine, name, None) for name in names)


def _in_rows(store: Any, keys: Sequence[str]) -> Iterator[str]:
    model = store.get_model_class()
    # Where sessions are written: a replica may not have the newest ones.
    valid = model.objects.using(router.db_for_write(model)).filter(expire_date__gt=timezone.now())
    for some in _batches(keys):
        yield from valid.filter(session_key__in=some).values_list("session_key", flat=True)


def _in_cache(store: Any, keys: Sequence[str]) -> Iterator[str]:
    prefix = store.cache_key_prefix
    cache = caches[settings.SESSION_CACHE_ALIAS]
    try:
        for some in _batches(keys):
            names = [prefix + key for key in some]
            for name in _asked_of_cache(functools.partial(cache.get_many, names)):
                yield name.removeprefix(prefix)
    finally:
        cache.close()


def _asked_of_cache(ask: Callable[[], Found]) -> Found:
    """Return what is found of sessions in the cache.

    Raises:
        OSError: The cache is away, and passes that over in silence, as django-redis can.
    """
    found = ask()
    if not found:
        cache = caches[settings.SESSION_CACHE_ALIAS]
        # Always the same: a replica may be behind.
        cache.set(_PROBE, _PROBE)
        if cache.get(_PROBE) != _PROBE:
            raise OSError("The cache of the sessions does not keep anything.")
        # It may just have come back.
        found = ask()
    return found


async def resolve_user(request: HttpRequest) -> None:
    """Let ``auser`` be the user that the project's pages see, for whatever asks the request.

    That is ``user``, unless a middleware has set ``auser`` as well. Django's own finds the user of
    the session once more: it knows nothing of what was done to ``user``, nor of a backend's
    ``get_user`` that is not async.
    """
    if "user" not in vars(request) or _is_settled(request):
        return
    if not _is_djangos_user(request) and not _is_found_again(request.user):
        # Read again, it is the session's own user, or whoever is in that one's place.
        vars(request)[_IS_REPLACED] = not await _is_of_session(request)
    if not _is_djangos_auser(request) and not await _replaces_auser(request):
        return
    setattr(request, "auser", functools.partial(_user_set_on, request))  # noqa: B010


async def user_of(request: HttpRequest) -> Any:
    """Return a request's user as the project's pages see it, whatever has authenticated it; None or
    an anonymous one for nobody."""
    await resolve_user(request)
    if hasattr(request, "auser"):
        return await request.auser()
    return await loaded(getattr(request, "user", None))


async def current_user(request: HttpRequest) -> Any:
    """Return who owns a request's streams: its user or, where that is nobody, who else is set as
    ``user``. None for one that nothing tells from others, which is logged."""
    user = await user_of(request)
    if is_nobody(user):
        user = await loaded(getattr(request, "user", None))
    if is_nobody(user) or _can_own(user):
        return user
    kind = user.__class__
    log_once(
        f"The streams of users of the class {kind.__module__}.{kind.__qualname__} are nobody's: "
        "neither `cancel(user=...)` nor a limit reaches them. Such a user has to have "
        "`is_authenticated`, and `pk` or `id`. Give them, or override `get_owner` in the view."
    )
    return None


def _can_own(user: Any) -> bool:
    try:
        return hasattr(user, "is_authenticated") and bool(owner_key_of(user))
    except (TypeError, ValueError):
        return False


def renew_login(request: HttpRequest) -> None:
    """Let a request's session and user be read again, as Django's middleware does.

    What another middleware has set stays, and is read again: a ``user`` that is lazy or of the
    database, and what an ``auser`` of its own returns.
    """
    others: dict[str, Any] = {}
    has_user, has_auser = "user" in vars(request), hasattr(request, "auser")
    user = vars(request).get("user")
    if has_auser and not _is_djangos_auser(request):
        others["auser"] = request.auser if _is_settled(request) else _unread_auser(request.auser)
    if not hasattr(request, "session") or not has_auser:
        others |= {"user": _unread(user)} if has_user else {}
        vars(request).update(others)
        return
    # Not above: it imports models, which a project without users does not have.
    from django.contrib.auth.middleware import AuthenticationMiddleware

    is_replaced = vars(request).get(_IS_REPLACED, not _is_djangos_user(request))
    is_wrapped = _setup_of(user) is not None and not _is_djangos_user(request)
    request.session = type(request.session)(request.session.session_key)
    for cached in ("_cached_user", "_acached_user"):
        vars(request).pop(cached, None)
    AuthenticationMiddleware(lambda _: HttpResponse()).process_request(request)
    if has_user and is_replaced:
        others["user"] = _unread(user)
    elif is_wrapped:
        # The session's own, by way of a middleware that may say otherwise by now.
        others["user"] = _unread(user, request.user)
    vars(request).update(others)


async def _is_of_session(request: HttpRequest) -> bool:
    """Whether ``user`` is the user of the session, as after a login within the request."""
    session = getattr(request, "session", None)
    key = await session.aget(SESSION_KEY) if session is not None else None
    return key is not None and _are_one(await loaded(request.user), key)


async def _replaces_auser(request: HttpRequest) -> bool:
    """Whether ``user`` is somebody else than a middleware's own ``auser`` is."""
    if _is_djangos_user(request) or not hasattr(request, "auser"):
        return False
    # A gate may have set it to nobody, after whoever has set `auser`.
    return not _are_one(await loaded(request.user), await request.auser())


def _are_one(user: Any, other: Any) -> bool:
    try:
        return user_key(user) == user_key(other)
    except (TypeError, ValueError):
        return False


def _is_settled(request: HttpRequest) -> bool:
    return getattr(getattr(request, "auser", None), "func", None) is _user_set_on


def is_found_by_others(request: HttpRequest) -> bool:
    """Whether another middleware than Django's says who a request's user is."""
    return not (_is_djangos_user(request) and _is_djangos_auser(request))


def _is_djangos_user(request: HttpRequest) -> bool:
    setup = _setup_of(vars(request).get("user"))
    return getattr(setup, "__module__", None) == _DJANGOS


def _is_djangos_auser(request: HttpRequest) -> bool:
    auser = getattr(request, "auser", None)
    module = getattr(getattr(auser, "func", auser), "__module__", None)
    return module in (_DJANGOS, _LOGINS)


def _setup_of(user: Any) -> Callable[[], Any] | None:
    """Return what finds a lazy user."""
    return vars(user).get("_setupfunc") if isinstance(user, LazyObject) else None


def _unread(user: Any, of_session: Any = None) -> Any:
    """Return a user that is found and read again, whenever this is called; nobody, if it is not the
    session's, where one is given."""
    if _is_found_again(user):
        # What it was made of: that would be read once more each time, and what it has found be
        # taken for what it finds now.
        user = vars(user)["_setupfunc"].args[0]
    if _setup_of(user) is None and not isinstance(user, Model):
        return user
    return SimpleLazyObject(functools.partial(_found_again, user, of_session))


def _is_found_again(user: Any) -> bool:
    """Whether a user was made here, of another one."""
    return getattr(_setup_of(user), "func", None) is _found_again


def _found_again(user: Any, of_session: Any) -> Any:
    setup = _setup_of(user)
    # It may find the instance of before again, which it keeps on the request.
    found = _refreshed(setup() if setup else user)
    return found if of_session is None or _are_one(found, of_session) else _nobody()


def _unread_auser(auser: Callable[[], Awaitable[Any]]) -> Callable[[], Awaitable[Any]]:
    """Return an ``auser`` whose user is read again."""
    # Of one that was made here before, what it was made of.
    original: Any = auser
    if isinstance(auser, functools.partial) and auser.func is _read_again:
        [original] = auser.args
    return functools.partial(_read_again, original)


async def _read_again(auser: Callable[[], Awaitable[Any]]) -> Any:
    return await sync_to_async(_refreshed)(await auser())


def _refreshed(user: Any) -> Any:
    """Return a user with its row read again, and what else was set on it, as a token's scopes, but
    nothing that was worked out from the row of before."""
    if not isinstance(user, Model) or user.pk is None:
        return user
    fresh = copy(user)
    for name in list(vars(fresh)):
        kept = inspect.getattr_static(type(fresh), name, None)
        if name.endswith("_perm_cache") or isinstance(kept, _CACHED):
            delattr(fresh, name)
    try:
        fresh.refresh_from_db(using=router.db_for_write(type(user), instance=user))
    except ObjectDoesNotExist:
        return _nobody()
    return fresh


def _nobody() -> Any:
    from django.contrib.auth.models import AnonymousUser

    return AnonymousUser()


async def _user_set_on(request: HttpRequest) -> Any:
    if _setup_of(request.user):
        # In a thread: what finds the user may block.
        await sync_to_async(is_nobody)(request.user)
    user = await loaded(request.user)
    return _nobody() if user is None else user


def with_login(view: Callable[..., Any]) -> Callable[..., Any]:
    """Give an async view the user that the project's pages see, and keep what it answers from
    deleting the session's cookie.

    Django deletes the cookie of a session that is gone. A browser comes back to a stream whenever
    it likes, so that the answer to the cookie of before may come after that of a login, and would
    take the login's cookie away.
    """

    @functools.wraps(view)
    async def wrapper(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        await resolve_user(request)
        response: HttpResponseBase = await view(request, *args, **kwargs)
        session = getattr(request, "session", None)
        if session is not None and session.is_empty():
            # What the middleware does not see there, it does not delete.
            request.COOKIES.pop(settings.SESSION_COOKIE_NAME, None)
        return response

    return wrapper


def _users(keys: Iterable[str]) -> dict[str, Any]:
    model: Any = get_user_model()
    to_python, to_text = model._meta.pk.to_python, model._meta.pk.value_to_string
    wanted = []
    for key in keys:
        # Sessions may be older than the kind of key that users have now: such a one finds nobody.
        with suppress(ValidationError):
            wanted.append(to_python(key))
    found: dict[str, Any] = {}
    # Where users are written: a replica may not have the newest ones.
    users = model._default_manager.using(router.db_for_write(model))
    for some in _batches(wanted):
        found |= {to_text(user): user for user in users.filter(pk__in=some)}
    return found


def _batches(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    for begin in range(0, len(items), _BATCH):
        yield items[begin : begin + _BATCH]


def _backend(path: str) -> Any:
    """Return an authentication backend; None for one that Django does not ask any more."""
    if path not in settings.AUTHENTICATION_BACKENDS:
        return None
    with suppress(ImportError, ImproperlyConfigured):
        return load_backend(path)
    return None


def _may_log_in(user: Any, login: Login) -> bool:
    backend = _backend(login.backend)
    if backend is None:
        return False
    # Not every backend is a ModelBackend, which asks for `is_active`.
    may_log_in = getattr(backend, "user_can_authenticate", None)
    return bool(may_log_in(user) if may_log_in else getattr(user, "is_active", True))


async def _user_of_backend(login: Login) -> Any:
    """Return whom a login's backend finds, as the project's pages ask it.

    Raises:
        Exception: It could not look for the user.
    """
    backend = _backend(login.backend)
    model: Any = get_user_model()
    try:
        key = model._meta.pk.to_python(login.user)
    except ValidationError:
        return None
    with suppress(ObjectDoesNotExist):
        return await sync_to_async(backend.get_user)(key)
    return None


def _has_hash(user: Any, session_hash: str) -> bool:
    if not hasattr(user, "get_session_auth_hash"):
        return True
    if constant_time_compare(session_hash, user.get_session_auth_hash()):
        return True
    # Asked only now, as Django does: not every user model has it.
    fallbacks = user.get_session_auth_fallback_hash()
    return any(constant_time_compare(session_hash, other) for other in fallbacks)
