"""
The handler that everybody writes first: FastAPI, Pillow, open_clip, one forward pass a request.

A program of its own, without a line of everlens but for an import of torchvision that works.
"""

from __future__ import annotations

import argparse
import io

import torch
import uvicorn
from fastapi import FastAPI, UploadFile
from PIL import Image

from everlens.model.runtime import import_torchvision


def app_of(model_name: str, labels: list[str], precision: str) -> FastAPI:
    """Return the application: `POST /classify` with a file part named image."""
    import_torchvision()  # also where a CUDA build of it meets a CPU build of torch
    import open_clip

    model, _, preprocess = open_clip.create_model_and_transforms(model_name)
    dtype = getattr(torch, precision)
    model = model.eval().to(dtype)
    tokens = open_clip.get_tokenizer(model_name)([f"a photo of a {label}." for label in labels])
    with torch.no_grad():
        text = torch.nn.functional.normalize(model.encode_text(tokens), dim=-1)
    app = FastAPI()

    @app.post("/classify")
    def classify(image: UploadFile) -> dict[str, float]:
        picture = preprocess(Image.open(io.BytesIO(image.file.read()))).unsqueeze(0).to(dtype)
        with torch.inference_mode():
            embedding = torch.nn.functional.normalize(model.encode_image(picture), dim=-1)
            scores = (100.0 * embedding @ text.T).float().softmax(dim=-1)[0]
        return dict(zip(labels, scores.tolist(), strict=True))

    return app


def main() -> None:
    """Serve until told to stop."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--labels", nargs="+", required=True)
    asked = parser.parse_args()
    app = app_of(asked.model, asked.labels, asked.precision)
    uvicorn.run(app, host="127.0.0.1", port=asked.port, access_log=False)


if __name__ == "__main__":
    main()
