"""`python -m tests.fuzz MINUTES [SEED]`: ask for so long what nobody thought of; status 1 tells."""

from __future__ import annotations

import sys

from tests.folders import short_folder
from tests.fuzz.asking import requests_by_status, running, schemathesis


def main() -> int:
    """Run schemathesis against a fresh everlens; print its report and what was answered."""
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 20.0
    seed = ["--seed", sys.argv[2]] if len(sys.argv) > 2 else []
    with short_folder("fuzz") as folder:
        with running(folder) as (launcher, url):
            words = ["run", f"{url}/openapi.json", "--max-time", str(int(60 * minutes)), *seed]
            run = schemathesis(folder, url, *words)
            try:
                code = run.wait(60 * minutes + 900)
            finally:
                run.end()
                print(run.said())
            answered = requests_by_status(url)
            print(f"{answered.total()} requests:", *(f"{n} × {s}" for s, n in answered.items()))
            lives = launcher.process.poll() is None
        if not lives or "restart" in launcher.said():
            print(launcher.said())
            return 1
        return code


if __name__ == "__main__":
    sys.exit(main())
