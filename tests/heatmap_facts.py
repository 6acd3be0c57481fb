"""The facts of a heat map, as render_saliency writes them."""

from glassbox.explanation.facts import (
    ClassProbability,
    Completeness,
    Display,
    Facts,
    ImageSize,
    LayerShare,
    to_json,
)


def facts(predicted_class, complete=True, blurred=None):
    """JSON of a ResNet18's heat map of class ``predicted_class``, with a probability of 0.75."""
    return to_json(
        Facts(
            predicted_class=predicted_class,
            class_name=None,
            probability=0.75,
            logit=8.0,
            top=(ClassProbability(predicted_class, 0.75),),
            completeness=Completeness(
                complete=complete,
                logit=8.0,
                sum=8.0,
                residual=0.0,
                relative_error=0.0,
                sum_abs=9.0,
                held={},
                unaccounted=(),
            ),
            layers=(LayerShare("input", "input", 8.0, 1.0),),
            display=Display((1.0, 99.5), 0.0, 1.0),
            input_image=ImageSize(48, 48, 3),
            model="ResNet18",
            trace_form="reduced",
            step=0,
            sample=0,
            request={},
            blurred=blurred,
        )
    )
