"""The names of the tensors of a trace: what the hook on the endpoint writes and what the reader expects.

The one module that ``model_code`` and :mod:`glassbox.explanation.trace_reader` share; it needs the
standard library only.
``package.py`` puts it into ``model.tar.gz`` beside the hook.

A **step** is one traced request of N samples. Both forms hold:

=====================  =========================  ==========================================================
tensor                 shape, dtype               content
=====================  =========================  ==========================================================
``glassbox/meta``      (B,) uint8                 UTF-8 JSON, see below
``glassbox/picture``   (N, H, W, C) uint8         the picture before normalisation, as the model saw its size
``glassbox/logits``    (N, K) float32             the scores before softmax
``glassbox/target``    (N,) int64                 the class whose logit was differentiated
=====================  =========================  ==========================================================

The **reduced** form (the default) holds besides, for the input (named ``input``) and every biased module m:

=======================  ======================  ===========================================================
``glassbox/stats``       (N, 1 + M, 5) float64   row 0 the input, row 1 + i ``meta["modules"][i]``; the
                                                 columns are :data:`STATS`
``glassbox/abs/<m>``     (N, h, w) float32       Σ_c |term| over the channels, where ``meta`` says that m has a map
=======================  ======================  ===========================================================

where term = input·gradient for the input and bias·gradient-of-the-output for a module.

The **full** form holds the tensors under smdebug's own names, as ``smdebug.trials.create_trial`` reads them:
``<Model>_input_0`` (N, C, H, W) float32 the normalised input, ``gradient/image`` (N, C, H, W), and for every
biased module ``gradient/<m>_output`` (N, C, h, w) or (N, C) with ``<Model>_<m>.bias``, of a BatchNorm also with
``<Model>_<m>.weight``, ``<m>.running_mean_output_0`` and ``<m>.running_var_output_0`` (a BatchNorm without parameters
has the last two only); ``<m>_output_0`` (N, K) are the logits under the name of the module that gave them.

``glassbox/meta``::

    {"version": 3, "form": "reduced" | "full", "model": "ResNet",
     "modules": [{"name": "bn1", "type": "BatchNorm2d", "eps": 1e-05,          in the order of the forward pass
                  "map": true}, …],                            its output has pixels: it enters the map
     "inexact": ["act: SiLU is not piecewise linear", …],      parts for which FullGrad is not exact; [] is exact
     "class_names": ["Stop", …] | null,                        the name of each sample's target class
     "request": {"inference_id": … | null, "custom_attributes": … | null, "sha256": hex of the raw body,
                 "time": "2026-11-23T10:00:01.123Z",
                 "replay_incident": …, "replay_event_id": …,       of a verified replay marker only
                 "samples": "20"}}                 pictures of the request: the first N are traced, as many as may be

A replay that cannot be traced is a step of ``glassbox/meta`` alone, with ``"refused": "why"`` in it.

A module called more than once in a forward pass is ``name#0``, ``name#1``, …; its parameters keep the plain name.
"""

VERSION = 3

# What a step may hold to be rendered: pixels of all its pictures, and bytes of its tensors. An object of 64 MiB is
# read: the rest is for what lies around the tensors.
STEP_PIXELS = 1 << 22
STEP_BYTES = 60 << 20
CLASS_NAME_CHARACTERS = 200  # of a class name
REASON_CHARACTERS = 400  # of ``refused``

# of `request`, where its replay marker verified: the incident that sent it, the event id that names its pictures
REPLAY_INCIDENT, REPLAY_EVENT_ID = "replay_incident", "replay_event_id"

REDUCED, FULL = "reduced", "full"

META = "glassbox/meta"
PICTURE = "glassbox/picture"
LOGITS = "glassbox/logits"
TARGET = "glassbox/target"
STATS_TENSOR = "glassbox/stats"
STATS = ("channels", "min_abs", "max_abs", "sum", "sum_abs")
INPUT = "input"
RANDOM = (
    "gives different logits for the same image"  # in an entry of ``inexact``: no explanation is reproducible
)

IMAGE_GRADIENT = "gradient/image"


def abs_map(module: str) -> str:
    """Name of the tensor that holds Σ_c |term| of ``module`` (or of :data:`INPUT`)."""
    return f"glassbox/abs/{module}"


def output_gradient(module: str) -> str:
    """smdebug's name for the gradient of the logit with respect to the output of ``module``."""
    return f"gradient/{module}_output"


def parameter(model: str, module: str, parameter_name: str) -> str:
    """smdebug's name for a parameter; ``module`` may carry a ``#call`` suffix, parameters never do."""
    return f"{model}_{module.partition('#')[0]}.{parameter_name}"


def output(module: str) -> str:
    """smdebug's name for the output of ``module``."""
    return f"{module}_output_0"


def running(module: str, statistic: str) -> str:
    """Name of a BatchNorm's ``running_mean`` or ``running_var``, written as an output of the module."""
    return output(f"{module.partition('#')[0]}.{statistic}")


def model_input(model: str) -> str:
    """smdebug's name for the (normalised) input of the whole model."""
    return f"{model}_input_0"
