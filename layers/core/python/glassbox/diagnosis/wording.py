"""The sentences of a diagnosis: evidence in words, and what to do about each cause."""

from collections.abc import Mapping, Sequence

from glassbox.diagnosis.evidence import SAME_ANSWER
from glassbox.diagnosis.onset import UPDATE_MINUTES, Update
from glassbox.diagnosis.prevalence import Prevalence
from glassbox.incidents.diagnosis import UNKNOWN, Repair

LIMITS = (
    "This is evidence of a cause, never proof of it: the answers to repaired copies show what changes them, "
    "and an attack that avoids these repairs is not seen."
)

DEPLOYMENT = "the deployment"
#: An action and a command by cause.
ACTIONS: Mapping[str, tuple[str, str]] = {
    "attack": (
        "Find the sender of the flagged requests in the logs of your own service (CloudTrail does not record "
        "InvokeEndpoint), and block that client or limit its rate.",
        "",
    ),
    "too dark": (
        "Check the camera's exposure and the light, or brighten the images before the endpoint.",
        "",
    ),
    "too bright": ("Check the camera's exposure, or darken the images before the endpoint.", ""),
    "low contrast": ("Check the lens for dirt or fog, or stretch the contrast before the endpoint.", ""),
    "blur or low resolution": (
        "Check the focus of the camera, and how the sender scales and compresses its images.",
        "",
    ),
    "noise": ("Check the sensor's gain and temperature, or smooth the images before the endpoint.", ""),
    "channels swapped": ("Send the channels in the order in which the model was trained (RGB, not BGR).", ""),
    "wrong scaling": ("Check the value range that the sender writes: 0 to 255, not 0 to 1.", ""),
    "upside down": (
        "Check how the camera is mounted, and whether the sender follows EXIF's orientation.",
        "",
    ),
    "broken sensor": ("Look at the flagged images, and replace or restart the camera.", ""),
    "one image again and again": (
        "Check for a frozen camera, or for one sender that repeats a request.",
        "",
    ),
    "prevalence": (
        "Compare with the world: the images look as usual, and more of them show this class.",
        "",
    ),
    DEPLOYMENT: (
        "Compare the deployed model, its labels and its preprocessing with those before, or return to them.",
        "aws sagemaker describe-endpoint --endpoint-name {endpoint}",
    ),
    "the response changed": (
        "Compare the response with the previous deployment, or set ClassPath and ConfidencePath.",
        "aws sagemaker describe-endpoint --endpoint-name {endpoint}",
    ),
    UNKNOWN: ("Look at the flagged images below, and at the last deployment.", ""),
}

_MEASURED = {
    "attack": (("noise", "{:.1f} deviations more noise than usual", 1),),
    "too dark": (
        ("brightness", "{:.1f} deviations darker than usual", -1),
        ("black", "more black values than usual", 1),
    ),
    "too bright": (
        ("brightness", "{:.1f} deviations brighter than usual", 1),
        ("white", "more white values than usual", 1),
    ),
    "low contrast": (
        ("light", "the light parts are {:.1f} deviations darker", -1),
        ("dark", "the dark parts are {:.1f} deviations lighter", 1),
    ),
    "blur or low resolution": (
        ("sharpness", "{:.1f} deviations less sharp than usual", -1),
        ("detail", "{:.1f} deviations less detail than usual", -1),
        ("blocks", "borders of 8 x 8 blocks, {:.1f} deviations stronger than usual", 1),
    ),
    "noise": (("noise", "{:.1f} deviations more noise than usual", 1),),
    "channels swapped": (("red over blue", "red and blue are {:.1f} deviations from their usual ratio", 0),),
    "wrong scaling": (("levels", "{:.1f} deviations fewer different values than usual", -1),),
    "upside down": (("light above", "the light comes from below, by {:.1f} deviations", -1),),
    "broken sensor": (
        ("flat rows", "rows without any change, {:.1f} deviations more than usual", 1),
        ("entropy", "{:.1f} deviations fewer different values than usual", -1),
    ),
}
#: The repairs that undo a cause; no repair undoes the others.
REPAIRS_OF: Mapping[str, tuple[str, ...]] = {
    "attack": ("compressed (JPEG 50)", "smoothed (3 x 3 median)", "reduced to 4 bits"),
    "too dark": ("brightened (gamma 0.4)", "contrast stretched", "values times 255"),
    "too bright": ("darkened (gamma 2)", "contrast stretched"),
    "low contrast": ("contrast stretched", "darkened (gamma 2)", "brightened (gamma 0.4)"),
    "blur or low resolution": ("sharpened", "smoothed (3 x 3 median)"),
    "noise": ("smoothed (3 x 3 median)", "compressed (JPEG 50)"),
    "channels swapped": ("channels swapped",),
    "wrong scaling": ("values times 255", "contrast stretched"),
    "upside down": ("mirrored top to bottom", "turned by 180 degrees"),
}
_SEEN = 1.0  # deviations that are worth a sentence
_RARER = 0.2  # share of the similar images, likewise


def sentences(
    cause: str,
    found: Mapping[str, float],
    repairs: Sequence[Repair],
    *,
    weigh: bool,
    prevalence: Prevalence | None = None,
) -> tuple[str, ...]:
    """Return the observations for a cause in words, the repairs first.

    Args:
        weigh: the deviations are from a reference, not from ordinary photos.
        prevalence: the shares of the true classes that explain the window's counts best.
    """
    named = REPAIRS_OF.get(cause, ())
    counted = sorted((r for r in repairs if r.counts and r.name in named), key=lambda r: -r.back / r.flagged)
    lines = [str(repair) for repair in counted]
    for measure, text, sign in _MEASURED.get(cause, ()):
        deviation = found.get(measure, 0.0)
        size = abs(deviation) if sign == 0 else sign * deviation
        if size >= _SEEN:
            lines.append(text.format(size) + ("" if weigh else " (of ordinary photos)"))
    rarer = -found.get(SAME_ANSWER, 0.0)
    if cause == "attack" and rarer >= _RARER:
        lines.append(f"similar images of the reference have this answer {rarer:.0%} less often than usual")
    if cause == "one image again and again":
        same, similar = found["share of the most frequent image"], found["share of similar images"]
        lines.append(f"{same:.0%} of the flagged inputs are the same image, {similar:.0%} look the same")
    if cause == "prevalence":
        lines += [str(prevalence)] if prevalence else []
        lines.append(
            f"{found['share of usual']:.0%} of the weight of the flagged images is on the usual look"
        )
    return tuple(lines)


def update_sentences(cause: str, update: Update | None) -> tuple[str, ...]:
    """Return the observations for an update of the endpoint as the cause."""
    if cause != DEPLOYMENT or update is None or not update.chance:
        return ()
    return (
        f"it began within {UPDATE_MINUTES} minutes of the endpoint's update at {update.time:%H:%M} UTC, "
        "and nothing else explains it",
    )
