"""Its tenants."""

from django.db import models
from django_tenants.models import DomainMixin, TenantMixin


class Estate(TenantMixin):  # type: ignore[misc]
    """A tenant."""

    name = models.CharField(max_length=20)

    def __str__(self) -> str:
        return self.name


class Domain(DomainMixin):  # type: ignore[misc]
    """The host that a tenant is served on."""
