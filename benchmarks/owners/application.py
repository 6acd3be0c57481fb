"""A web application of an owner, who has never heard of a hook: one script of ``scripts.py``, served by Flask."""

import io
import json
import os
import zlib

import numpy as np
import scripts
from flask import Flask, Response, request
from PIL import Image

predict = getattr(scripts, os.environ["OWNER"])()
app = Flask(__name__)


def image_of(body: bytes, content_type: str | None) -> np.ndarray:
    """Return the image (H, W, 3) uint8 of a body in JSON, NumPy's format or PNG.

    Raises:
        ValueError: another content type or shape, or a body that does not decode.
    """
    if content_type == "application/json":
        image = np.array(json.loads(body)["instances"][0], np.uint8)
    elif content_type == "application/x-npy":
        image = np.load(io.BytesIO(body), allow_pickle=False)
    elif content_type == "image/png":
        image = np.array(Image.open(io.BytesIO(body)))
    else:
        raise ValueError(f"expected JSON, npy or PNG, got {content_type}")
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"expected an image (H, W, 3), got {image.shape}")
    return image


@app.get("/ping")
def ping() -> str:
    """Answer the health check."""
    return "up"


@app.post("/invocations")
def invocations() -> Response:
    """Answer an image."""
    body = request.get_data()
    try:
        image = image_of(body, request.content_type)
    except (ValueError, OSError) as error:
        return Response(json.dumps({"error": str(error)}), 400, {"X-Owner": "refused"}, "application/json")
    answer = predict(image)
    mimetype = "application/octet-stream" if isinstance(answer, bytes) else "application/json"
    return Response(answer, 200, {"X-Owner": f"{zlib.crc32(body):08x}"}, mimetype)
