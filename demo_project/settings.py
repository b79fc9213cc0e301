"""Settings of the demo: SQLite, the in-memory channel layer, and no service to install."""

import os
from pathlib import Path

BASE_DIR = Path(__file__).resolve().parent.parent

DEBUG = True
SECRET_KEY = "only for the demo"
# Only this machine's own names. The owner of another name may let it lead here (DNS rebinding).
ALLOWED_HOSTS = [".localhost", "127.0.0.1", "[::1]"]

INSTALLED_APPS = [
    # Makes `runserver` an ASGI server.
    "daphne",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "django_sse",
    "demo_project",
    "demo_project.recipes",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
]

ROOT_URLCONF = "demo_project.urls"
ASGI_APPLICATION = "demo_project.asgi.application"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
            ]
        },
    }
]

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ.get("DEMO_DATABASE", BASE_DIR / "demo.sqlite3"),
        "OPTIONS": {
            "transaction_mode": "IMMEDIATE",
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL",
        },
    }
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

CHANNEL_LAYERS = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}

# The demo has two names. Each is an origin whose pages read the streams of the other.
_PORT = os.environ.get("DEMO_PORT", "8000")
DJANGO_SSE = {
    "ALLOWED_ORIGINS": [f"http://{host}:{_PORT}" for host in ("localhost", "127.0.0.1")],
    "ALLOW_CREDENTIALS": True,
}

USE_TZ = True
TIME_ZONE = "UTC"
STATIC_URL = "static/"
# The npm packages of the recipes for htmx, Turbo and Datastar, if they are installed.
_PACKAGES = BASE_DIR / "demo_project" / "node_modules"
STATICFILES_DIRS = [("npm", _PACKAGES)] if _PACKAGES.exists() else []
