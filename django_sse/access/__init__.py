"""Access: who owns a stream, and whether the login that opened it is still valid.

Promise: no stream outlives its user's logout, and no two owners are mistaken for each other.
Whatever opens, publishes to or ends streams imports it. It imports `groups`.
"""
