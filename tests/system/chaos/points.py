"""
Named points of the worker's way: `before:` or `after:` a function, or `inside:` a transaction, where
everything is written and nothing committed.
"""

from __future__ import annotations

# What lies between two effects; both sides of what has none would be the same point twice.
POINTS = (
    "after:create",
    "after:restore",
    "after:hold",
    "after:resume",
    "after:read",
    "before:control",
    "after:control",
    "after:observe",
    "after:save-observation",
    "inside:commit",
    "after:commit",
    "before:store",
    "after:store",
    "after:publish",
    "after:collect",
    "before:trim",
    "after:trim",
    "after:report",
    "after:save-round",
    "after:tune",
    "after:save-tuning",
    "after:save-accepted",
    "after:go-back",
    "after:save-forgotten",
    "before:copy",
    "after:copy",
)
