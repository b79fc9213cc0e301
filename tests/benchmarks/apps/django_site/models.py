"""A table of the project's own, which publishing is compared with."""

from django.db import models


class Row(models.Model):
    name = models.CharField(max_length=100)
    data = models.BinaryField()

    def __str__(self) -> str:
        return self.name
