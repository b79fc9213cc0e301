from time import time

from django.db import migrations, models


def now() -> int:
    return int(time() * 1_000_000)


class Migration(migrations.Migration):
    """Times become numbers, of the database's clock. What is kept counts as of now."""

    dependencies = [
        ("django_sse", "0002_owners"),
    ]

    operations = [
        migrations.RemoveField(model_name="eventgroup", name="changed"),
        migrations.AddField(
            model_name="eventgroup",
            name="changed",
            field=models.BigIntegerField(db_index=True, default=now),
            preserve_default=False,
        ),
        migrations.RemoveField(model_name="storedevent", name="created"),
        migrations.AddField(
            model_name="storedevent",
            name="created",
            field=models.BigIntegerField(db_index=True, default=now),
            preserve_default=False,
        ),
    ]
