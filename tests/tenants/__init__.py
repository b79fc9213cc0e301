"""A project on django-tenants: a schema of PostgreSQL for each tenant."""
