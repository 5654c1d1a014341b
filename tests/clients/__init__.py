"""Clients that people already have, each the real one from its own package, against a service."""
