"""
Teach a folder of photographs, a folder a class, and ask about pictures that have no name yet.

    python examples/folder.py photographs/ --ask unsorted/

Run it again after new pictures came: what was sent before is not learnt twice.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from everlens import Client

PICTURES = {".jpg", ".jpeg", ".png", ".webp"}


def main() -> None:
    """Teach, wait until the last picture is learnt, then ask."""
    parser = argparse.ArgumentParser(description="Teach a folder of photographs.")
    parser.add_argument("folder", type=Path, help="a folder a class, named like it")
    parser.add_argument("--ask", type=Path, help="a folder of pictures without names")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    options = parser.parse_args()
    with Client(options.url) as client:
        report = client.learn_folder(options.folder)
        for skipped in report.skipped:
            print(f"skipped {skipped.path}: {skipped.reason}")
        if report.last is not None:
            learnt = client.wait(report.last.id, within_s=3600)
            print(f"{report.taken} pictures, learnt by version {learnt.version}")
        if options.ask is None:
            return
        for picture in sorted(p for p in options.ask.iterdir() if p.suffix.lower() in PICTURES):
            answer = client.classify(picture)
            unsure = " (none of them, maybe)" if answer.known and answer.known < 0.5 else ""
            print(f"{picture.name}: {answer.best.label} {answer.best.score:.0%}{unsure}")


if __name__ == "__main__":
    main()
