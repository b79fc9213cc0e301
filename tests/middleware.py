"""The middleware of the test project, where its environment asks for it."""

from collections import Counter

from django.http import HttpRequest
from django.utils.deprecation import MiddlewareMixin


class FailsAtFirst(MiddlewareMixin):
    """Fails at the first requests of a URL, as many as its parameter ``fail`` says."""

    def process_request(self, request: HttpRequest) -> None:
        url = request.get_full_path()
        if _failures[url] < int(request.GET.get("fail", 0)):
            _failures[url] += 1
            raise RuntimeError("The middleware fails, as the test wants it.")


_failures: Counter[str] = Counter()
