"""All cases: importing their modules registers them."""

from __future__ import annotations

from tests.system.chaos import (  # noqa: F401
    directed,
    faults_log,
    faults_server,
    faults_service,
    faults_worker,
    lasting,
    mutants,
    random_runs,
    soak,
    steering,
)
from tests.system.chaos.campaign import CASES

__all__ = ["CASES"]
