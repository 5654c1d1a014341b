"""
Learn from a log of corrections: one JSON object a line, written by whatever shows the answers.

    {"prediction_id": "4349f436…", "label": "heron"}
    {"image": "pictures/0042.jpg", "label": "heron"}

    python examples/corrections.py corrections.jsonl            # once
    tail -n +1 -f corrections.jsonl | python examples/corrections.py -     # as they are written

Each line is learnt once, however often the log is read. What the service no longer remembers by its
prediction needs the picture itself.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys

from everlens import ApiError, Client


def main() -> None:
    """Send each line; say which could not be learnt, and go on."""
    parser = argparse.ArgumentParser(description="Learn from a log of corrections.")
    parser.add_argument("log", type=argparse.FileType(encoding="utf-8"), help="a file, or -")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    options = parser.parse_args()
    learnt = failed = 0
    with Client(options.url) as client:
        for number, line in enumerate(options.log, start=1):
            if not line.strip():
                continue
            try:
                correction = json.loads(line)
                if "prediction_id" in correction:
                    client.correct(correction["prediction_id"], correction["label"])
                else:
                    # Of the line, so that reading the log again changes nothing.
                    sample_id = hashlib.sha256(line.encode()).hexdigest()[:32]
                    client.learn(correction["image"], correction["label"], id=sample_id)
                learnt += 1
            except (ApiError, OSError, KeyError, ValueError) as error:
                failed += 1
                print(f"line {number}: {error}", file=sys.stderr)
    print(f"{learnt} corrections sent, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
