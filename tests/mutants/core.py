"""The modules that are changed, and the tests that concern each."""

# Modules, then the rest of a folder: the first that fits counts.
CORE = {
    "access": [
        "access",
        "streaming/test_rechecks.py",
        "streaming/test_permission_rechecks.py",
        "test_mixins.py",
        "test_receivers.py",
    ],
    "doorbells/base.py": [
        "doorbells/test_base.py",
        "doorbells/test_datagrams.py",
        "streaming/test_hub.py",
        "streaming/test_stream.py",
        "streaming/test_subscription.py",
    ],
    "event.py": ["test_event.py", "streaming/test_encoded_events.py"],
    "groups": [
        "groups",
        "streaming/test_reconnects.py",
        "streaming/test_stream.py",
        "stores/test_contract.py",
        "test_views.py",
    ],
    "http/sessions.py": ["access/test_logins.py", "streaming/test_permission_rechecks.py"],
    "http": ["http", "servers", "streaming/test_unread.py", "test_decorators.py", "test_views.py"],
    "publishing.py": [
        "test_publishing.py",
        "stores/test_outbox.py",
        "stores/test_write_retries.py",
    ],
    "servers": ["servers", "streaming/test_unread.py", "test_checks.py"],
    "stores/base.py": [
        "stores/test_contract.py",
        "stores/test_hanging.py",
        "streaming/test_hub.py",
        "streaming/test_stream.py",
        "streaming/test_subscription.py",
    ],
    "stores/memory.py": [
        "stores/test_contract.py",
        "stores/test_memory.py",
        "streaming/test_hub.py",
        "streaming/test_stream.py",
        "streaming/test_subscription.py",
    ],
    "streaming/encoded_events.py": ["streaming", "test_event.py", "test_views.py"],
    "streaming/permission_rechecks.py": [
        "streaming/test_permission_rechecks.py",
        "streaming/test_failures.py",
        "access",
    ],
    "streaming/rechecks.py": [
        "streaming/test_rechecks.py",
        "streaming/test_permission_rechecks.py",
        "streaming/test_failures.py",
        "access",
        "test_receivers.py",
    ],
    "streaming": [
        "streaming",
        "concurrency/test_tasks.py",
        "groups/test_replay.py",
        "servers/test_shutdown.py",
        "test_views.py",
    ],
}


def find_tests(module: str) -> list[str]:
    """Return the tests that concern a module, given by its path within the package."""
    tests = next(tests for part, tests in CORE.items() if module.startswith(part))
    return [f"tests/{test}" for test in tests]
