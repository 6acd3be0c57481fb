"""Trains a ResNet18 on an image folder or on drawn traffic signs, and writes what the endpoint serves.

    python -m model_code.train --out model.pt                                        43 drawn traffic signs
    python -m model_code.train --out model.pt --data train --test test --labels names.csv

`model.pt` is the state dict; `model.json` beside it says how pictures become the model's input and what the
classes are called. A folder holds one folder of pictures per class.
"""

import argparse
import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from rich.progress import track
from torch import Tensor

from glassbox.errors import BadInputError, GlassboxError
from local import signs
from model_code.resnet import ResNet18

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".webp"}


@dataclass(frozen=True)
class Pictures:
    """What to learn from, or to be tested on.

    Attributes:
        images: (N, 3, size, size) uint8, RGB.
        classes: (N,) int64.
        labels: the name of each class.
    """

    images: Tensor
    classes: Tensor
    labels: tuple[str, ...]


def drawn(count: int, seed: int, size: int) -> Pictures:
    """`count` drawn traffic signs."""
    images, classes = signs.dataset(count, seed, size)
    return Pictures(_planes(images), torch.from_numpy(classes), signs.LABELS)
