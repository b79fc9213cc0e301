"""The modules that are changed, and the tests that concern each."""

# Modules, then the rest of a folder: the first that fits counts.
CORE = {
    "access": ["access", "test_mixins.py"],
    "doorbells/base.py": [
        "doorbells/test_base.py",
        "doorbells/test_datagrams.py",
        "streaming/test_hub.py",
    ],
    "event.py": ["test_event.py", "streaming/test_encoded_events.py"],
    "groups": [
        "groups",
        "streaming/test_reconnects.py",
        "stores/test_contract.py",
        "test_views.py",
    ],
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
    ],
    "stores/memory.py": [
        "stores/test_contract.py",
        "stores/test_memory.py",
        "streaming/test_hub.py",
    ],
    "streaming/encoded_events.py": ["streaming", "test_event.py", "test_views.py"],
    "streaming/permission_rechecks.py": [
        "streaming/test_permission_rechecks.py",
        "streaming/test_failures.py",
        "access",
    ],
    "streaming/rechecks.py": [
        "streaming/test_permission_rechecks.py",
        "streaming/test_failures.py",
        "access",
    ],
    "streaming": [
        "streaming",
        "groups/test_replay.py",
        "servers/test_shutdown.py",
        "test_views.py",
    ],
}


def find_tests(module: str) -> list[str]:
    """Return the tests that concern a module, given by its path within the package."""
    tests = next(tests for part, tests in CORE.items() if module.startswith(part))
    return [f"tests/{test}" for test in tests]
