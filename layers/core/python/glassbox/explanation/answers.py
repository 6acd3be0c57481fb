"""Compare the class of the endpoint's response with the explained one.

The owner's code makes the response out of the network's scores, and may choose another class: by a threshold, an
ensemble, or other numbers for the classes.
"""

import base64
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from glassbox.errors import printable
from glassbox.explanation import trace_format
from glassbox.explanation.fullgrad import Explanation
from glassbox.explanation.trace_reader import Trace
from glassbox.monitoring.response import Prediction, ResponseParser, UnreadableError

ROUNDING = 0.01
"""Between the probabilities of two classes that a response may round to the same number."""

_REASON_CHARACTERS = 300


def compare(explanations: Sequence[Explanation], trace: Trace, parser: ResponseParser) -> list[Explanation]:
    """Return the explanations with the class of the response.

    ``answered`` has it where it is another; where it cannot be compared, ``not_compared`` has the reason.

    Args:
        explanations: of the first samples of the trace.
        parser: reads the response as the monitor does.
    """
    response = trace.tensors.get(trace_format.RESPONSE)
    if response is None:
        return list(explanations)
    try:
        if response.dtype != np.uint8 or response.ndim != 1 or not response.size:
            raise UnreadableError("the hook does not see the response, or it is too large")
        data = base64.b64encode(response.tobytes()).decode()
        predictions = parser.read(data, "BASE64", None)
        samples = trace.meta.request.get("samples")
        if str(len(predictions)) != samples:
            raise UnreadableError(
                f"response: expected {samples} predictions, one per image, got {len(predictions)}"
            )
        return [
            replace(explanation, answered=_other(explanation, prediction))
            for explanation, prediction in zip(explanations, predictions, strict=False)
        ]
    except UnreadableError as error:
        reason = printable(str(error), _REASON_CHARACTERS)
        return [replace(explanation, not_compared=reason) for explanation in explanations]


def _other(explanation: Explanation, prediction: Prediction) -> int | str | None:
    """Return the class of the response if it is another than the explained one."""
    answered, probabilities = prediction.predicted_class, explanation.probabilities
    if isinstance(answered, str):
        if explanation.class_name is None:
            raise UnreadableError("the response names classes, and the network numbers them")
        return None if answered == explanation.class_name else answered
    if answered == explanation.target:
        return None
    if 0 <= answered < len(probabilities):
        is_rounded = abs(probabilities[answered] - explanation.probability) <= ROUNDING
        return None if is_rounded else answered
    return answered
