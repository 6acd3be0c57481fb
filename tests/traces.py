"""Traces written by smdebug itself from the terms of :mod:`zoo`: the recorder's format, written independently of it."""

import json
import warnings
from pathlib import Path

import numpy as np
import torch

from glassbox.explanation import trace_format
from glassbox.explanation.trace_reader import read_index, read_trace
from zoo import BATCH_NORM


def meta(terms, model, trace_form, **other):
    """``glassbox/meta`` as the recorder writes it; ``other`` replaces parts of it."""
    modules = dict(model.named_modules())
    described = {
        "version": trace_format.VERSION,
        "trace_form": trace_form,
        "model": model._get_name(),
        "terms": [
            {
                "name": name,
                "type": type(module).__name__,
                "rule": "batch norm" if isinstance(module, BATCH_NORM) else "bias",
                "eps": getattr(module, "eps", None),
                "map": gradient.ndim == 4,
            }
            for name, (_, gradient) in terms.modules.items()
            for module in [modules[name.partition("#")[0]]]
        ],
        "held": {},
        "unaccounted": [],
        "class_names": None,
        "request": {
            "inference_id": "request-1",
            "custom_attributes": None,
            "sha256": "0" * 64,
            "time": "2026-11-23T10:00:01.123Z",
        },
    }
    return np.frombuffer(json.dumps(described | other).encode(), np.uint8)


def reduced(terms, model, input_image=None, **other):
    """The tensors of the reduced form, computed in float64."""
    parts = {trace_format.INPUT: terms.image * terms.image_gradient}
    for name, (bias, gradient) in terms.modules.items():
        parts[name] = bias.view(1, -1, *[1] * (gradient.ndim - 2)) * gradient
    stats, maps = [], {}
    for name, term in parts.items():
        flat = term.double().flatten(1)
        absolute = flat.abs()
        channels = torch.full((len(flat),), float(term.shape[1]), dtype=torch.float64)
        row = [channels, absolute.amin(1), absolute.amax(1), flat.sum(1), absolute.sum(1)]
        stats.append(torch.stack(row, 1))
        if term.ndim == 4:
            maps[trace_format.abs_map(name)] = term.double().abs().sum(1).float().numpy()
    return {
        trace_format.META: meta(terms, model, trace_format.REDUCED, **other),
        **_common(terms, input_image),
        trace_format.STATS_TENSOR: torch.stack(stats, 1).numpy(),
        **maps,
    }


def full(terms, model, input_image=None, **other):
    """The tensors of the full form: gradients and parameters under smdebug's names."""
    name = model._get_name()
    tensors = {
        trace_format.META: meta(terms, model, trace_format.FULL, **other),
        **_common(terms, input_image),
        trace_format.model_input(name): terms.image.float().numpy(),
        trace_format.IMAGE_GRADIENT: terms.image_gradient.float().numpy(),
    }
    modules = dict(model.named_modules())
    for call, (_, gradient) in terms.modules.items():
        tensors[trace_format.output_gradient(call)] = gradient.float().numpy()
        module = modules[call.partition("#")[0]]
        for parameter, value in module.named_parameters(recurse=False):
            tensors[trace_format.parameter(name, call, parameter)] = value.detach().numpy()
        if isinstance(module, BATCH_NORM):
            for statistic in ("running_mean", "running_var"):
                tensors[trace_format.running(call, statistic)] = getattr(module, statistic).numpy()
    return tensors


def write_step(folder, tensors, step=0):
    """Write a step with smdebug. Returns its index's path below ``folder``."""
    from smdebug.core.collection_manager import CollectionManager
    from smdebug.core.modes import ModeKeys
    from smdebug.core.writer import FileWriter

    writer = FileWriter(trial_dir=str(folder), step=step, worker="worker_0", mode=ModeKeys.PREDICT)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # smdebug calls numpy's tostring
        for name, value in tensors.items():
            writer.write_tensor(value, name, mode=ModeKeys.PREDICT, mode_step=step)
    writer.close()
    CollectionManager().export(str(folder), "worker_0_collections.json")
    return f"index/{step // 1000:09d}/{step:012d}_worker_0.json"


def read_step(folder, index_path):
    """The step as the function reads it: index, then events."""
    index = read_index(index_path, (Path(folder) / index_path).read_bytes())
    return read_trace(index, (Path(folder) / index.events_key).read_bytes())


def _common(terms, input_image):
    if input_image is None:
        low, high = terms.image.min(), terms.image.max()
        input_image = ((terms.image - low) / (high - low) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return {
        trace_format.INPUT_IMAGE: input_image,
        trace_format.LOGITS: terms.logits.float().numpy(),
        trace_format.TARGET: terms.target.numpy(),
    }
