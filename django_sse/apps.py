"""The app's configuration, for ``INSTALLED_APPS``."""

from django.apps import AppConfig, apps


class DjangoSSEConfig(AppConfig):
    name = "django_sse"
    verbose_name = "Server-Sent Events"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from django_sse import checks  # noqa: F401  (registers the checks)

        if apps.is_installed("django.contrib.auth"):
            from django_sse import receivers

            receivers.connect()
