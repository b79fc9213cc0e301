"""Access: who owns a stream, and whether the login that it was opened in still holds.

Promise: nobody's stream outlives his logout, and no two owners are taken for each other.
Whoever opens, publishes to or ends streams imports it; it knows `groups`.
"""
