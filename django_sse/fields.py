"""A model field for the names of groups."""

from typing import TYPE_CHECKING, Any

from django.db import models
from django.db.backends.base.base import BaseDatabaseWrapper

if TYPE_CHECKING:
    _CharField = models.CharField[str, str]
else:
    _CharField = models.CharField


class GroupField(_CharField):
    """A group's name, which every database compares byte for byte."""

    def db_parameters(self, connection: BaseDatabaseWrapper) -> dict[str, Any]:
        parameters: dict[str, Any] = super().db_parameters(connection)
        if connection.vendor == "mysql":
            # Its default collations take News and news for the same. Not `db_collation`, which
            # would be asked of every database.
            parameters["collation"] = "utf8mb4_bin"
        return parameters
