"""
Say what a camera sees, and learn from what is typed: the name of what is in front of it, and Enter.

    pip install opencv-python
    python examples/webcam.py

The name is learnt from the very picture that was answered wrongly, and the next answer knows it.
"""

from __future__ import annotations

import argparse
import sys
import threading
from queue import Empty, SimpleQueue

import cv2

from everlens import ApiError, Client


def main() -> None:
    """Classify frames until the camera ends or Ctrl-C."""
    parser = argparse.ArgumentParser(description="Classify what a camera sees.")
    parser.add_argument("--camera", default="0", help="a number, a file or a stream (default 0)")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    options = parser.parse_args()
    camera = cv2.VideoCapture(int(options.camera) if options.camera.isdigit() else options.camera)
    if not camera.isOpened():
        sys.exit(f"no picture from {options.camera}; is there a camera, and is it free?")
    names: SimpleQueue[str] = SimpleQueue()
    threading.Thread(target=lambda: [names.put(line) for line in sys.stdin], daemon=True).start()
    said = ""
    with Client(options.url) as client:
        while True:
            there, frame = camera.read()
            if not there:
                break
            picture = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
            try:
                name = names.get_nowait().strip()
            except Empty:
                name = ""
            if name:
                receipt = client.learn(picture, name)
                print(f"{name}: learnt by version {client.wait(receipt.id).version}", flush=True)
            try:
                best = client.classify(picture, top=1).best
            except ApiError as error:
                if error.status != 409:  # nothing is learnt yet
                    raise
                continue
            if best.label != said:
                said = best.label
                print(f"{best.label} ({best.score:.0%})", flush=True)


if __name__ == "__main__":
    main()
