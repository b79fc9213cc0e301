"""The logins that opened streams, and whether Django still accepts them and their sessions."""

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field
from random import sample
from time import monotonic
from typing import Any, Final, TypeVar

from asgiref.sync import sync_to_async
from django.conf import settings
from django.contrib.auth import SESSION_KEY, get_user_model, load_backend
from django.contrib.sessions.backends.base import SessionBase
from django.contrib.sessions.backends.cache import SessionStore as CacheSession
from django.contrib.sessions.backends.cached_db import SessionStore as CachedDatabaseSession
from django.contrib.sessions.backends.db import SessionStore as DatabaseSession
from django.contrib.sessions.backends.file import SessionStore as FileSession
from django.core.cache import caches
from django.core.exceptions import (
    ImproperlyConfigured,
    ObjectDoesNotExist,
    SuspiciousOperation,
    ValidationError,
)
from django.db import DataError, router
from django.db.models import Model
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.utils import timezone
from django.utils.crypto import constant_time_compare
from django.utils.functional import LazyObject, SimpleLazyObject, cached_property

from django_sse.access.owners import (
    Login,
    data_of,
    is_identified,
    is_nobody,
    loaded,
    user_key,
)
from django_sse.concurrency.tasks import must_propagate
from django_sse.logs import log_once, logger

Item = TypeVar("Item")
Found = TypeVar("Found", bound=Collection[str])

# Users or sessions in one query.
_BATCH: Final = 500
# The key that is written to a cache and read back, to see whether the cache works.
_PROBE: Final = "django_sse.probe"
# Properties that cache their value on the instance.
_CACHED_PROPERTIES: Final = (functools.cached_property, cached_property)
# The module of the middleware that sets `user` and `auser`, and the module of `login()`, which sets
# them since Django 6.1.
_MIDDLEWARE_MODULE: Final = "django.contrib.auth.middleware"
_LOGIN_MODULE: Final = "django.contrib.auth"
# The attribute of a request that says whether another middleware has set another user.
_IS_REPLACED: Final = "_django_sse_replaces_user"
# How long a backend may take to find a user.
_ANSWER_SECONDS: Final = 10.0
# How long a session engine of the project is asked about sessions, one after the other.
_ENGINE_SECONDS: Final = 2.0


@dataclass(slots=True)
class LoginCheck:
    """The logins that are not valid any more, or may not be."""

    absent: set[Login] = field(default_factory=set)
    """Their user was not found. Once alone, this proves nothing."""
    gone: set[Login] = field(default_factory=set)
    """Their user may not log in any more, for example because the user is inactive."""
    changed: set[Login] = field(default_factory=set)
    """Their session was made with another password."""


def check_logins(logins: Collection[Login]) -> LoginCheck:
    """Check logins of users whom Django's ModelBackend finds. Blocks: call it in a thread.

    Raises:
        Exception: The users could not be read.
    """
    users = _users({login.user for login in logins})
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
            # Other logins are not affected. The next request of this login shows what is wrong.
            checked.changed.add(login)
            if not failed:
                logger.exception("A login cannot be checked, so its clients must reconnect.")
            failed = True
    return checked


async def acheck_with_backend(login: Login) -> LoginCheck:
    """Check a login whose backend does not find users as Django's ModelBackend does.

    Raises:
        TimeoutError: The backend took more than ten seconds.
        Exception: The backend could not look for the user.
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
    """Whether a backend does not find users, or judge them, as one of Django's backends does.

    What a project has written may ask a directory, which is slow or hangs.
    """
    # Imported here, since it imports models that a project without users does not have.
    from django.contrib.auth import backends

    backend = type(backend_of(path))
    names = ("get_user", "aget_user", "user_can_authenticate")
    methods = [getattr(backend, name, None) for name in names]
    of_django = [
        method
        for cls in (
            backends.ModelBackend,
            backends.AllowAllUsersModelBackend,
            backends.AllowAllUsersRemoteUserBackend,
        )
        for method in vars(cls).values()
    ]
    return any(method and method not in of_django for method in methods)


def without_session(logins: Collection[Login]) -> set[Login]:
    """Return the logins whose session is gone, or has another key now. Blocks: call it in a thread.

    Raises:
        Exception: The sessions could not be read.
    """
    keys: dict[type[SessionBase], set[str]] = {}
    for login in logins:
        if login.session_store and login.session_key:
            keys.setdefault(login.session_store, set()).add(login.session_key)
    gone = {(store, key) for store in keys for key in keys[store] - _existing(store, keys[store])}
    return {login for login in logins if (login.session_store, login.session_key) in gone}


def _existing(store: type[SessionBase], keys: Collection[str]) -> set[str]:
    """Return the keys of the sessions that exist, as Django would find them."""
    in_database, in_cache = _places_of(store)
    if not in_database and not in_cache:
        session = store()

        def ask() -> set[str]:
            # In another order each time: an engine that is slow is not asked about all.
            in_turn = sample(list(keys), len(keys))
            ends = monotonic() + _ENGINE_SECONDS
            return {key for key in in_turn if monotonic() > ends or session.exists(key)}

        return _ask_cache(ask) if issubclass(store, CacheSession) else ask()
    found: set[str] = set()
    if in_database:
        found.update(_existing_in_database(store, list(keys)))
    if in_cache:
        try:
            found.update(_existing_in_cache(store, list(set(keys) - found)))
        except Exception:
            # As Django does, go by the database while the cache is away.
            if not in_database:
                raise
    return found


def _places_of(store: type[SessionBase]) -> tuple[bool, bool]:
    """Whether a session engine looks in the database, and in the cache, as Django's engines do."""
    in_both = _reads_like(store, CachedDatabaseSession)
    in_database = in_both or _reads_like(store, DatabaseSession)
    return in_database, in_both or _reads_like(store, CacheSession)


def _reads_like(store: Any, engine: type[SessionBase]) -> bool:
    """Whether a session engine looks for sessions where one of Django's engines does."""
    names = ("load", "cache_key", "_get_session_from_db")
    return all(getattr(store, name, None) is getattr(engine, name, None) for name in names)


def _existing_in_database(store: Any, keys: Sequence[str]) -> Iterator[str]:
    model = store.get_model_class()
    # From the database that sessions are written to: a replica may lack the newest ones.
    valid = model.objects.using(router.db_for_write(model)).filter(expire_date__gt=timezone.now())
    for some in batches(keys):
        yield from valid.filter(session_key__in=some).values_list("session_key", flat=True)


def _existing_in_cache(store: Any, keys: Sequence[str]) -> Iterator[str]:
    prefix = store.cache_key_prefix
    cache = caches[settings.SESSION_CACHE_ALIAS]
    try:
        for some in batches(keys):
            names = [prefix + key for key in some]
            for name in _ask_cache(functools.partial(cache.get_many, names)):
                yield name.removeprefix(prefix)
    finally:
        cache.close()


def _ask_cache(ask: Callable[[], Found]) -> Found:
    """Return the sessions that are found in the cache.

    Raises:
        OSError: The cache is unavailable and hides this, as django-redis can.
    """
    found = ask()
    if not found:
        cache = caches[settings.SESSION_CACHE_ALIAS]
        # The value is always the same, since a replica may be behind.
        cache.set(_PROBE, _PROBE)
        if cache.get(_PROBE) != _PROBE:
            raise OSError("The cache of the sessions does not keep anything.")
        # The cache may just have come back.
        found = ask()
    return found


async def resolve_user(request: HttpRequest) -> None:
    """Make ``request.auser`` return the user that the project's pages see.

    This is ``request.user``, unless a middleware has set ``auser`` as well. Django's own ``auser``
    looks up the session's user once more. It ignores what was done to ``user``, and a backend's
    ``get_user`` that is not async.
    """
    if "user" not in vars(request) or _is_resolved(request):
        return
    if not _has_django_user(request) and not _is_reloading(request.user):
        # A reloaded user is the session's own, or whoever has replaced it.
        vars(request)[_IS_REPLACED] = not await _is_of_session(request)
    if not _has_django_auser(request) and not await _replaces_auser(request):
        return
    take_user(request)


def take_user(request: HttpRequest) -> None:
    """Make ``request.auser`` return ``request.user``, which has been set in place of all others."""
    setattr(request, "auser", functools.partial(_resolved_user, request))  # noqa: B010


async def user_of(request: HttpRequest) -> Any:
    """Return a request's user as the project's pages see it, however the request was authenticated.

    It is None or an anonymous user if nobody is logged in.
    """
    await resolve_user(request)
    if hasattr(request, "auser"):
        return await request.auser()
    return await loaded(getattr(request, "user", None))


async def current_user(request: HttpRequest) -> Any:
    """Return who owns a request's streams.

    This is the request's user. If that is nobody, it is whoever is set as ``request.user``. It is
    None for a user that nothing distinguishes from others, which is logged.
    """
    user = await user_of(request)
    if is_nobody(user):
        user = await loaded(getattr(request, "user", None))
    if is_nobody(user) or is_identified(user):
        return user
    kind = user.__class__
    log_once(
        f"Streams of users of the class {kind.__module__}.{kind.__qualname__} have no owner: "
        "neither `cancel(user=...)` nor a limit applies to them. Give the class "
        "`is_authenticated`, and `pk` or `id`, or override `get_owner` in the view."
    )
    return None


async def check_session(request: HttpRequest) -> None:
    """Tell a session that is gone from one that could not be read.

    Django's engines for caches and files return an empty session in both cases, as if nobody were
    logged in: the cache may be away, or a file may not open.

    Raises:
        OSError: The session of the request's cookie could not be read, and may exist.
    """
    session = getattr(request, "session", None)
    key = request.COOKIES.get(settings.SESSION_COOKIE_NAME)
    if not key or not isinstance(session, SessionBase):
        return
    try:
        await data_of(session)
        store = type(session)
        # Another engine may have refused a session that exists.
        if session.session_key is not None or not (
            _reads_like(store, CacheSession) or _reads_like(store, FileSession)
        ):
            return
        exists = await sync_to_async(_existing)(store, [key])
    except (SuspiciousOperation, ValueError, DataError):
        # The cookie has a key that the engine never makes, and its cache or database may refuse.
        request.session = type(session)()
        return
    except Exception as error:
        raise OSError("The session could not be read.") from error
    if exists:
        raise OSError("The session exists, and could not be read.")


def renew_login(request: HttpRequest) -> None:
    """Make a request read its session and user again, as Django's middleware does.

    What another middleware has set stays, and is read again: a ``user`` that is lazy or comes from
    the database, and the user that the middleware's own ``auser`` returns.
    """
    others: dict[str, Any] = {}
    has_user, has_auser = "user" in vars(request), hasattr(request, "auser")
    user = vars(request).get("user")
    if has_auser and not _has_django_auser(request):
        is_resolved = _is_resolved(request)
        others["auser"] = request.auser if is_resolved else _reloading_auser(request.auser)
    if not hasattr(request, "session") or not has_auser:
        others |= {"user": _reloading(user)} if has_user else {}
        vars(request).update(others)
        return
    is_replaced = vars(request).get(_IS_REPLACED, not _has_django_user(request))
    is_wrapped = _setup_of(user) is not None and not _has_django_user(request)
    set_djangos_user(request, type(request.session)(request.session.session_key))
    if has_user and is_replaced:
        others["user"] = _reloading(user)
    elif is_wrapped:
        # The session's own user, as set by a middleware that may decide otherwise by now.
        others["user"] = _reloading(user, request.user)
    vars(request).update(others)


def set_djangos_user(request: HttpRequest, session: SessionBase) -> None:
    """Give a request a session and its user, which are read when they are first used."""
    # Imported here, since it imports models that a project without users does not have.
    from django.contrib.auth.middleware import AuthenticationMiddleware

    request.session = session
    for cached in ("_cached_user", "_acached_user"):
        vars(request).pop(cached, None)
    AuthenticationMiddleware(lambda _: HttpResponse()).process_request(request)


async def _is_of_session(request: HttpRequest) -> bool:
    """Whether ``user`` is the user of the session, for example after a login in this request."""
    session = getattr(request, "session", None)
    key = (await data_of(session)).get(SESSION_KEY)
    return key is not None and _is_same_user(await loaded(request.user), key)


async def _replaces_auser(request: HttpRequest) -> bool:
    """Whether ``user`` is not the user that a middleware's own ``auser`` returns."""
    if _has_django_user(request) or not hasattr(request, "auser"):
        return False
    # A later middleware may have set `user` to nobody, after another one has set `auser`.
    return not _is_same_user(await loaded(request.user), await request.auser())


def _is_same_user(user: Any, other: Any) -> bool:
    try:
        return user_key(user) == user_key(other)
    except (TypeError, ValueError):
        return False


def _is_resolved(request: HttpRequest) -> bool:
    return getattr(getattr(request, "auser", None), "func", None) is _resolved_user


def is_found_by_others(request: HttpRequest) -> bool:
    """Whether a middleware other than Django's decides who a request's user is."""
    # `resolve_user` replaces Django's own `auser` by one that returns `user`.
    has_django_auser = _has_django_auser(request) or _is_resolved(request)
    return not (_has_django_user(request) and has_django_auser)


def _has_django_user(request: HttpRequest) -> bool:
    setup = _setup_of(vars(request).get("user"))
    return getattr(setup, "__module__", None) == _MIDDLEWARE_MODULE


def _has_django_auser(request: HttpRequest) -> bool:
    auser = getattr(request, "auser", None)
    module = getattr(getattr(auser, "func", auser), "__module__", None)
    return module in (_MIDDLEWARE_MODULE, _LOGIN_MODULE)


def _setup_of(user: Any) -> Callable[[], Any] | None:
    """Return the function that finds a lazy user."""
    return vars(user).get("_setupfunc") if isinstance(user, LazyObject) else None


def _reloading(user: Any, of_session: Any = None) -> Any:
    """Return a lazy copy of a user that is looked up and read again when it is first used.

    If ``of_session`` is given and is another user, the copy is an anonymous user.
    """
    if _is_reloading(user):
        # Use the original. A copy of a copy would read it once more each time, and would take what
        # the first copy has found for what the original finds now.
        user = vars(user)["_setupfunc"].args[0]
    if _setup_of(user) is None and not isinstance(user, Model):
        return user
    return SimpleLazyObject(functools.partial(_reload, user, of_session))


def _is_reloading(user: Any) -> bool:
    """Whether ``_reloading`` has made this user."""
    return getattr(_setup_of(user), "func", None) is _reload


def _reload(user: Any, of_session: Any) -> Any:
    setup = _setup_of(user)
    # The setup function may return the old instance, which it keeps on the request.
    found = _refreshed(setup() if setup else user)
    return found if of_session is None or _is_same_user(found, of_session) else _nobody()


def _reloading_auser(auser: Callable[[], Awaitable[Any]]) -> Callable[[], Awaitable[Any]]:
    """Return an ``auser`` that reads its user again."""
    # If this function has made it, use the original.
    original: Any = auser
    if isinstance(auser, functools.partial) and auser.func is _areload:
        [original] = auser.args
    return functools.partial(_areload, original)


async def _areload(auser: Callable[[], Awaitable[Any]]) -> Any:
    return await sync_to_async(_refreshed)(await auser())


def _refreshed(user: Any) -> Any:
    """Return a copy of a user with its row read again.

    Other attributes that were set on it stay, for example the scopes of a token. Values that were
    computed from the old row are dropped.
    """
    if not isinstance(user, Model) or user.pk is None:
        return user
    fresh = copy(user)
    for name in list(vars(fresh)):
        kept = inspect.getattr_static(type(fresh), name, None)
        if name.endswith("_perm_cache") or isinstance(kept, _CACHED_PROPERTIES):
            delattr(fresh, name)
    try:
        fresh.refresh_from_db(using=router.db_for_write(type(user), instance=user))
    except ObjectDoesNotExist:
        return _nobody()
    return fresh


def _nobody() -> Any:
    from django.contrib.auth.models import AnonymousUser

    return AnonymousUser()


async def _resolved_user(request: HttpRequest) -> Any:
    if _setup_of(request.user):
        # In a thread, since the function that finds the user may block.
        await sync_to_async(is_nobody)(request.user)
    user = await loaded(request.user)
    return _nobody() if user is None else user


def with_login(view: Callable[..., Any]) -> Callable[..., Any]:
    """Give an async view the user that the project's pages see, and protect the session's cookie.

    Django's response deletes the cookie of a session that is gone. But a browser reconnects to a
    stream at any time: the response to the old cookie may arrive after the response of a login,
    and would delete the login's cookie.
    """

    @functools.wraps(view)
    async def wrapper(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        await resolve_user(request)
        response: HttpResponseBase = await view(request, *args, **kwargs)
        session = getattr(request, "session", None)
        if session is not None and session.is_empty():
            # The middleware deletes only a cookie that it sees in the request.
            request.COOKIES.pop(settings.SESSION_COOKIE_NAME, None)
        return response

    return wrapper


def _users(keys: Iterable[str]) -> dict[str, Any]:
    model: Any = get_user_model()
    to_python, to_text = model._meta.pk.to_python, model._meta.pk.value_to_string
    wanted = []
    for key in keys:
        # Old sessions may have a key of a type that users no longer have. It finds nobody.
        with suppress(ValidationError):
            wanted.append(to_python(key))
    found: dict[str, Any] = {}
    # From the database that users are written to: a replica may lack the newest ones.
    users = model._default_manager.using(router.db_for_write(model))
    for some in batches(wanted):
        found |= {to_text(user): user for user in users.filter(pk__in=some)}
    return found


def batches(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    """Return users or sessions, some for each query."""
    for begin in range(0, len(items), _BATCH):
        yield items[begin : begin + _BATCH]


def backend_of(path: str) -> Any:
    """Return an authentication backend, or None if Django does not use it any more."""
    if path not in settings.AUTHENTICATION_BACKENDS:
        return None
    with suppress(ImportError, ImproperlyConfigured):
        return load_backend(path)
    return None


def _may_log_in(user: Any, login: Login) -> bool:
    backend = backend_of(login.backend)
    if backend is None:
        return False
    # A backend that is not a ModelBackend may lack this method, which checks `is_active`.
    may_log_in = getattr(backend, "user_can_authenticate", None)
    return bool(may_log_in(user) if may_log_in else getattr(user, "is_active", True))


async def _user_of_backend(login: Login) -> Any:
    """Return the user that a login's backend finds, asked as the project's pages ask it.

    Raises:
        Exception: The backend could not look for the user.
    """
    backend = backend_of(login.backend)
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
    # Called last, as Django does, since not every user model has this method.
    fallbacks = user.get_session_auth_fallback_hash()
    return any(constant_time_compare(session_hash, other) for other in fallbacks)
