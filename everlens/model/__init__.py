"""The one forward path: the same code learns (in the worker) and answers (in the service). ⑨"""
