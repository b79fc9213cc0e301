"""The model field for group names."""

from typing import TYPE_CHECKING, Any

from django.db import models
from django.db.backends.base.base import BaseDatabaseWrapper

if TYPE_CHECKING:
    _CharField = models.CharField[str, str]
else:
    _CharField = models.CharField


class GroupField(_CharField):
    """A group name, which every database compares byte for byte."""

    def db_parameters(self, connection: BaseDatabaseWrapper) -> dict[str, Any]:
        parameters: dict[str, Any] = super().db_parameters(connection)
        if connection.vendor == "mysql":
            # MySQL's default collations treat News and news as equal. The field's `db_collation`
            # would apply to every database.
            parameters["collation"] = "utf8mb4_bin"
        return parameters
