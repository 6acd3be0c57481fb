"""The tensors of a trace: names, shapes and meta, shared by the recorder on the endpoint and the reader.

Needs the standard library only, because ``package.py`` puts it into ``model.tar.gz`` beside the recorder.

A **step** is one traced request of N samples. Both trace forms hold:

========================  =========================  =============================================================
tensor                    shape, dtype               content
========================  =========================  =============================================================
``glassbox/meta``         (B,) uint8                 UTF-8 JSON, see below
``glassbox/input_image``  (N, H, W, C) uint8         the input image at the model's size, before normalisation
``glassbox/logits``       (N, K) float32             the scores before softmax
``glassbox/target``       (N,) int64                 the class whose logit was differentiated
``glassbox/response``     (B,) uint8                 the body of the response; of 0 bytes if it is larger than
                                                     :data:`RESPONSE_BYTES` or the hook does not see it. Only from
                                                     endpoints that do not contain our code
========================  =========================  =============================================================

The **reduced** form (the default) adds, for the input (named ``input``) and every term t of ``meta["terms"]``:

=======================  ======================  ================================================================
``glassbox/stats``       (N, 1 + T, 5) float64   row 0 the input, row 1 + i ``meta["terms"][i]``; columns are
                                                 :data:`STATS`
``glassbox/abs/<t>``     (N, h, w) float32       Σ_c |term| over the channels, for terms with a map
=======================  ======================  ================================================================

where a term is input·gradient for the input and constant·gradient-of-the-output for a bias or another constant.

The **full** form adds tensors under smdebug's own names, as ``smdebug.trials.create_trial`` reads them:
``<Model>_input_0`` (N, C, H, W) float32 the normalised input, ``gradient/image`` (N, C, H, W), and for every
convolution, Linear and BatchNorm m ``gradient/<m>_output`` (N, C, h, w) or (N, C) with ``<Model>_<m>.bias``, of a
BatchNorm also with ``<Model>_<m>.weight``, ``<m>.running_mean_output_0`` and ``<m>.running_var_output_0`` (a BatchNorm
without parameters has the last two only); ``<m>_output_0`` (N, K) are the logits under the name of the module that
returned them. A term of another kind is ``glassbox/term/<t>`` (N, C, h, w) or (N, …) float32.

``glassbox/meta``::

    {"version": 5, "trace_form": "reduced" | "full", "model": "ResNet",
     "terms": [{"name": "bn1", "type": "BatchNorm2d", "rule": "batch norm", "eps": 1e-05,    in the order of the
                "map": true}, …],                              forward pass; with a map it enters the heat map
     "held": {"gate": 16, "activation": 33},                   rule -> places where a coefficient is held; {} for a
                                                               piecewise linear network
     "unaccounted": ["Cumprod: no rule for this …", …],        what the sum may miss, and randomness
     "class_names": ["Stop", …] | null,                        the name of each sample's target class
     "blurred": [{"best": 0.12, "random": 0.9}, null, …],      p(target) of each sample after blurring a tenth of the
                                                               image's cells: the best ones, and random ones; null
                                                               if it was not measured. A trace may lack the entry
     "request": {"inference_id": … | null, "custom_attributes": … | null, "sha256": hex of the body, see below,
                 "time": "2026-11-23T10:00:01.123Z",
                 "replay_incident": …, "replay_event_id": …,   only if its replay marker verified
                 "samples": "20"}}                             of the request; the first N of them are traced

``sha256`` is of the raw body, or of the network's input in float32 where the hook cannot see the body. Such a request
has neither an inference id nor custom attributes. On an endpoint that does not contain our code,
``glassbox/input_image`` is the network's input, each sample scaled to 0 to 255.

A replay that cannot be traced is a step of ``glassbox/meta`` alone, with ``"refused": "<reason>"`` in it.

A name that occurs more than once in a forward pass is ``name#0``, ``name#1``, …; parameters keep the plain name.
``name/prefix`` are the tokens before the grid of a map, such as a class token. The rules: ``gradient_rules.py``.
"""

VERSION = 5

# Limits of a step: pixels of all its input images, and bytes of its tensors. The reader downloads at most 64 MiB per
# object; the rest is for the records around the tensors.
STEP_PIXELS = 1 << 22
STEP_BYTES = 60 << 20
RESPONSE_BYTES = 1 << 20
CLASS_NAME_CHARACTERS = 200
REASON_CHARACTERS = 400  # of ``refused``

# Members of ``request`` if its replay marker verified: the incident that sent it, and the id that names its heat maps.
REPLAY_INCIDENT, REPLAY_EVENT_ID = "replay_incident", "replay_event_id"

REDUCED, FULL = "reduced", "full"

META = "glassbox/meta"
INPUT_IMAGE = "glassbox/input_image"
LOGITS = "glassbox/logits"
TARGET = "glassbox/target"
RESPONSE = "glassbox/response"
STATS_TENSOR = "glassbox/stats"
STATS = ("channels", "min_abs", "max_abs", "sum", "sum_abs")
INPUT = "input"
RANDOM = "gives different logits for the same image"  # in an entry of ``unaccounted``; no explanation is reproducible
OTHER_ANSWER = "the explained pass returned other logits than the answer"  # in an entry of ``unaccounted``

IMAGE_GRADIENT = "gradient/image"


def abs_map(term: str) -> str:
    """Return the name of the tensor that holds Σ_c |term| of ``term`` (or of :data:`INPUT`)."""
    return f"glassbox/abs/{term}"


def term_values(term: str) -> str:
    """Return the name of the tensor that holds ``term`` in the full form."""
    return f"glassbox/term/{term}"


def output_gradient(module: str) -> str:
    """Return smdebug's name for the gradient with respect to the output of ``module``."""
    return f"gradient/{module}_output"


def parameter(model: str, module: str, parameter_name: str) -> str:
    """Return smdebug's name for a parameter, without the ``#call`` suffix of ``module``."""
    return f"{model}_{module.partition('#')[0]}.{parameter_name}"


def output(module: str) -> str:
    """Return smdebug's name for the output of ``module``."""
    return f"{module}_output_0"


def running(module: str, statistic: str) -> str:
    """Return the name of a BatchNorm's statistic, written as an output of the module.

    ``statistic`` is ``running_mean`` or ``running_var``.
    """
    return output(f"{module.partition('#')[0]}.{statistic}")


def model_input(model: str) -> str:
    """Return smdebug's name for the (normalised) input of the model."""
    return f"{model}_input_0"
