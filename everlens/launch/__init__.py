"""
`everlens up`: one command that starts the embedded server, the worker and the service.

`supervisor` is the whole run; `tenure` takes directory and port, `program` tends one child,
`health` asks whether a half does its work, `greeting` says what to type next.
"""
