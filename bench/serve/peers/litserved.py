"""LitServe as its documentation has it, with batching; zero-shot by open_clip, Pillow decodes."""

# Annotations must not be postponed here: LitServe looks at that of `decode_request`.
import argparse
import base64
import io

import litserve
import torch
from fastapi import Request
from PIL import Image

from everlens.model.runtime import import_torchvision

_TIMEOUT_S = 0.01


class ZeroShot(litserve.LitAPI):  # type: ignore[misc, unused-ignore]
    """`POST /predict` with {"image": base64 of a file}."""

    def __init__(self, asked: argparse.Namespace) -> None:
        super().__init__(max_batch_size=asked.batch, batch_timeout=_TIMEOUT_S)
        self.asked = asked

    def setup(self, device: str) -> None:
        import_torchvision()  # a CUDA build of it beside a CPU torch, in this environment too
        import open_clip

        name = self.asked.model
        self.dtype = getattr(torch, self.asked.precision)
        model, _, self.preprocess = open_clip.create_model_and_transforms(name, device=device)
        self.model = model.eval().to(self.dtype)
        prompts = [f"a photo of a {label}." for label in self.asked.labels]
        with torch.no_grad():
            text = model.encode_text(open_clip.get_tokenizer(name)(prompts))
        self.text = torch.nn.functional.normalize(text, dim=-1)

    def decode_request(self, request: Request) -> torch.Tensor:
        picture = Image.open(io.BytesIO(base64.b64decode(request["image"])))
        prepared: torch.Tensor = self.preprocess(picture)
        return prepared

    def batch(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack(inputs)

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        pictures = (x if x.ndim == 4 else x[None]).to(self.dtype)
        with torch.inference_mode():
            embedding = torch.nn.functional.normalize(self.model.encode_image(pictures), dim=-1)
            scores: torch.Tensor = (100.0 * embedding @ self.text.T).float().softmax(dim=-1)
        return scores

    def unbatch(self, output: torch.Tensor) -> list[torch.Tensor]:
        return list(output)

    def encode_response(self, output: torch.Tensor) -> dict[str, float]:
        return dict(zip(self.asked.labels, output.flatten().tolist(), strict=True))


def main() -> None:
    """Serve until told to stop."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--labels", nargs="+", required=True)
    server = litserve.LitServer(ZeroShot(parser.parse_args()), accelerator="cpu")
    server.run(
        host="127.0.0.1",
        port=parser.parse_args().port,
        generate_client_file=False,
        log_level="error",
    )


if __name__ == "__main__":
    main()
