"""Sends everything that a client can send, and publishes everything that can be published."""
