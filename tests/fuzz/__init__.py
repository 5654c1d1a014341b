"""Requests that nobody thought of, made from the OpenAPI description by schemathesis."""
