"""``python -m tests.benchmarks.apps.django_site.prepare USERS FILE``: migrates the database, and
writes the session cookies of so many users into a file, a line each."""

import os
import sys
from datetime import timedelta
from pathlib import Path

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.benchmarks.apps.django_site.settings")
django.setup()

from django.conf import settings  # noqa: E402
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY  # noqa: E402
from django.contrib.auth.models import User  # noqa: E402
from django.contrib.sessions.backends.db import SessionStore  # noqa: E402
from django.contrib.sessions.models import Session  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.utils import timezone  # noqa: E402

_BACKEND = "django.contrib.auth.backends.ModelBackend"


def main(users: int, file: Path) -> None:
    call_command("migrate", run_syncdb=True, verbosity=0)
    User.objects.bulk_create(
        [User(username=f"user-{number}", password="!unusable") for number in range(users)]
    )
    expires = timezone.now() + timedelta(days=14)
    store = SessionStore()
    sessions = [
        Session(
            session_key=f"{user.pk:032d}",
            session_data=store.encode(
                {
                    SESSION_KEY: str(user.pk),
                    BACKEND_SESSION_KEY: _BACKEND,
                    HASH_SESSION_KEY: user.get_session_auth_hash(),
                }
            ),
            expire_date=expires,
        )
        for user in User.objects.order_by("pk")
    ]
    Session.objects.bulk_create(sessions)
    cookies = [f"{settings.SESSION_COOKIE_NAME}={session.session_key}" for session in sessions]
    file.write_text("".join(f"{cookie}\n" for cookie in cookies))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
