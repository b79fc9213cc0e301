"""The test project's WSGI application: for who publishes there, and streams elsewhere."""

from django.core.wsgi import get_wsgi_application

application = get_wsgi_application()
