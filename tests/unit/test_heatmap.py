"""Heat maps are decoded again: their panels, their texts, and extreme explanations."""

import dataclasses
import io
import json
import math
from unittest.mock import ANY

import numpy as np
import pytest
from PIL import Image

from glassbox.explanation import heatmap
from glassbox.explanation.facts import Blurred, describe_blurred, read_facts, to_json
from glassbox.explanation.fullgrad import Explanation, Layer

PAPER, ALARM = (255, 255, 255), (179, 38, 30)


def explanation(height=48, width=48, channels=3, **changes):
    """An image of noise whose relevance grows from left to right."""
    rng = np.random.default_rng(0)
    saliency = np.broadcast_to(np.linspace(2, 9, width, dtype=np.float32), (height, width))
    made = Explanation(
        step=7,
        sample=1,
        model="ResNet18",
        trace_form="reduced",
        input_image=rng.integers(0, 256, (height, width, channels), np.uint8),
        saliency=np.ascontiguousarray(saliency),
        target=14,
        class_name="Stop",
        logit=8.0,
        probability=0.75,
        probabilities=np.array([0.05, 0.15, 0.05, *[0.0] * 11, 0.75]),
        total=8.000001,
        sum_abs=100.0,
        layers=(Layer("input", "input", 5.0, 0.25), Layer("bn1", "BatchNorm2d", 3.000001, 0.75)),
        held={},
        unaccounted=(),
        request={"inference_id": "id-1", "custom_attributes": None, "sha256": "ab" * 32, "time": None},
        unplaced_share=0.125,
    )
    return dataclasses.replace(made, **changes)


def opened(*args, **kwargs):
    image = Image.open(io.BytesIO(heatmap.render(*args, **kwargs)))
    image.load()
    return image


def blocks(image):
    """The largest areas of a row through the middle of the panels that are not paper: (left, right) of each panel."""
    row = np.asarray(image)[image.height // 2]
    ink = (row != PAPER).any(1)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], ink.astype(int), [0]])))
    return [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if b - a > 20]


class TestPanels:
    def test_draws_three_panels_of_one_size(self):
        panels = blocks(opened(explanation()))
        assert len(panels) == 3
        assert {right - left for left, right in panels} == {336}  # 7 × 48: a whole factor, at least 320

    def test_first_panel_is_the_input_image(self):
        image = opened(explanation(512, 512))
        (left, right), *_ = blocks(image)
        assert right - left == 512
        pixels = np.asarray(image)
        top = next(
            y
            for y in range(image.height)
            if (pixels[y, left:right] == explanation(512, 512).input_image[0]).all()
        )
        np.testing.assert_array_equal(pixels[top : top + 512, left:right], explanation(512, 512).input_image)

    def test_red_is_most_and_blue_least_relevant_in_the_rainbow(self):
        image = opened(explanation(), palette="rainbow")
        _, (left, right), _ = blocks(image)
        row = np.asarray(image)[image.height // 2, left:right].astype(int)
        (r, g, b), (r0, _, b0) = row[-1], row[0]
        assert r - max(g, b) > 150
        assert b0 - r0 > 100

    def test_scale_has_the_same_colours(self):
        image = opened(explanation())
        _, (left, right), _ = blocks(image)
        pixels = np.asarray(image)
        heat = pixels[image.height // 2, left:right].astype(int)
        scale = [
            y for y in range(image.height // 2, image.height) if (pixels[y, left:right] != PAPER).any(1).all()
        ][-1]
        assert np.abs(pixels[scale, left:right].astype(int) - heat).mean() < 4

    def test_outlier_does_not_darken_the_rest(self):
        usual, outlier = explanation(), explanation()
        outlier.saliency[0, 0] = 1e6
        heat = [np.asarray(opened(e))[250, 700].astype(int) for e in (usual, outlier)]
        assert np.abs(heat[0] - heat[1]).max() < 25

    def test_overlay_blends_image_and_heat(self):
        """The image stays where nothing is relevant, and the most relevant side is coloured."""
        image = opened(explanation(64, 64, input_image=np.full((64, 64, 3), 128, np.uint8)))
        *_, (left, right) = blocks(image)
        row = np.asarray(image)[image.height // 2, left:right].astype(int)
        spread = row.max(1) - row.min(1)
        assert spread[-1] > 2 * spread[0]

    @pytest.mark.parametrize(
        ("size", "panel"),
        [
            ((1, 1), 320),
            ((48, 48), 336),
            ((128, 128), 384),
            ((224, 224), 448),
            ((512, 512), 512),
            ((900, 900), 640),
        ],
    )
    def test_enlarges_small_images_and_reduces_large_ones(self, size, panel):
        (left, right), *_ = blocks(opened(explanation(*size)))
        assert right - left == panel

    @pytest.mark.parametrize("size", [(30, 200), (200, 30), (1, 64), (64, 1), (7, 5), (2000, 3)])
    @pytest.mark.parametrize("channels", [1, 3])
    def test_draws_any_shape(self, size, channels):
        image = opened(explanation(*size, channels=channels))
        assert image.mode == "RGB"
        assert image.width >= 3 * 320

    @pytest.mark.parametrize(
        "saliency", [np.zeros((48, 48)), np.full((48, 48), 3e38), np.full((48, 48), 1e-45)]
    )
    @pytest.mark.filterwarnings("error::RuntimeWarning")
    def test_constant_map_is_blue(self, saliency):
        image = opened(explanation(saliency=saliency.astype(np.float32)))
        _, (left, right), _ = blocks(image)
        r, _, b = np.asarray(image)[image.height // 2, left + 5 : right - 5].mean(0)
        assert b > 2 * r


class TestPalettes:
    def luminance(self, colours):
        linear = np.where(colours <= 10.31, colours / 3294.6, ((colours / 255 + 0.055) / 1.055) ** 2.4)
        return linear @ [0.2126, 0.7152, 0.0722]

    def ramp(self, palette):
        image = opened(explanation(), palette=palette)
        _, (left, right), _ = blocks(image)
        return np.asarray(image)[image.height // 2, left:right].astype(float)

    def test_the_default_palette_grows_lighter(self):
        """So its order can be read in any colour vision, and in print."""
        lightness = 116 * np.cbrt(self.luminance(self.ramp("perceptual"))) - 16
        assert (np.diff(lightness) > -0.5).all()
        assert lightness[-1] - lightness[0] > 75

    def test_rainbow_palette_is_not_monotonic_in_lightness(self):
        assert (np.diff(self.luminance(self.ramp("rainbow"))) < -0.001).any()

    def test_raises_for_an_unknown_palette(self):
        with pytest.raises(KeyError, match="jet"):
            heatmap.render(explanation(), palette="jet")


class TestPreview:
    def test_shows_the_panels_side_by_side(self):
        shown = Image.open(io.BytesIO(heatmap.preview(explanation(64, 96))))
        assert (shown.format, shown.size) == ("WEBP", (3 * 176 + 2 * 4, round(64 * 176 / 96)))
        # the second panel is coloured, the first is that of the input image
        again = heatmap.preview(explanation(64, 96))
        assert again == heatmap.preview(explanation(64, 96))
        assert again != heatmap.preview(explanation(64, 96), "rainbow")

    @pytest.mark.parametrize("size", [(1, 1), (30, 200), (2000, 3), (7, 5)])
    def test_draws_any_shape(self, size):
        shown = Image.open(io.BytesIO(heatmap.preview(explanation(*size, channels=1))))
        assert max(shown.width // 3, shown.height) in (176, 177, 178)


class TestTexts:
    def banner(self, image):
        """Whether the alarm's colour runs from the left to the right edge."""
        return (np.asarray(image) == ALARM).all(2)[:, [0, 1, -2, -1]].all(1).any()

    def test_marks_incomplete_heat_maps(self):
        complete, incomplete = opened(explanation()), opened(explanation(total=7.0))
        assert self.banner(incomplete)
        assert not self.banner(complete)
        assert not (np.asarray(complete) == ALARM).all(2).any()
        # heat map and overlay are framed too
        middle = np.asarray(incomplete)[incomplete.height // 2]
        assert (middle == ALARM).all(1).sum() == 4 * 4

    @pytest.mark.parametrize("total", [8.000001, 7.0])
    def test_marks_heat_maps_of_another_class_than_the_answered(self, total):
        other = opened(explanation(answered=25, total=total))
        assert self.banner(other)
        warning = "NOT WHAT WAS ANSWERED, the response gives class 25. "
        verdict = opened(explanation(total=total)).text["Description"]
        assert other.text["Description"] == warning + verdict
        assert other.text["answered"] == "25"
        middle = np.asarray(other)[other.height // 2]
        assert (middle == ALARM).all(1).sum() == 4 * 4

    def test_text_chunks_hold_the_key_facts(self):
        text = opened(explanation()).text
        assert text["Title"] == "75.0%  class 14 · Stop"
        assert text["Description"] == "Complete: completeness error 1.2e-07 of the logit"
        assert text["class"] == "14"
        assert float(text["probability"]) == 0.75
        assert float(text["logit"]) == 8.0
        assert float(text["completeness residual"]) == pytest.approx(1e-6)
        assert float(text["sum of absolute terms"]) == 100.0
        assert float(text["share of terms without a place"]) == 0.125
        assert text["complete"] == "yes"
        assert text["request"] == "ab" * 32  # not the InferenceId, which a client chooses

    def test_states_how_many_gates_are_held(self):
        text = opened(explanation(held={"gate": 16, "activation": 33})).text
        assert text["Description"].startswith("Complete, gates held at 49 places: completeness error ")
        assert text["places with held gates"] == "49"
        one = opened(explanation(held={"gate": 1})).text
        assert one["Description"].startswith("Complete, gates held at 1 place: ")

    def test_names_why_it_is_incomplete(self):
        parts = (
            "act1: SiLU is not piecewise linear",
            "act2: SiLU is not piecewise linear",
            "norm: LayerNorm",
        )
        text = opened(explanation(total=7.0, unaccounted=parts)).text
        assert text["Description"] == (
            "INCOMPLETE, do not rely on this map: completeness error 1.2e-01 of the logit "
            "(act1: SiLU is not piecewise linear, and 2 more)"
        )
        assert text["complete"] == "no"

    def test_states_what_blurring_does(self):
        with_numbers, without = opened(explanation(blurred=Blurred(0.12, 0.9))), opened(explanation())
        text = "class 14 falls from 0.75 to 0.12 when the best 10 % is blurred; to 0.90 for a random 10 %"
        assert with_numbers.text["blurred"] == text
        assert "blurred" not in without.text
        # one more line below the panels, nothing else
        assert with_numbers.height == without.height + 23
        ours, theirs = np.asarray(with_numbers), np.asarray(without)
        np.testing.assert_array_equal(ours[: without.height - 12], theirs[:-12])
        assert (ours[without.height - 12 :] != PAPER).any()

    @pytest.mark.parametrize(
        ("probability", "blurred", "words"),
        [
            (0.93, Blurred(0.12, 0.9), "falls from 0.93 to 0.12 when the best 10 % is blurred; to 0.90 for"),
            (0.50, Blurred(0.75, 0.5), "rises from 0.50 to 0.75 when the best 10 % is blurred; to 0.50 for"),
            (0.931, Blurred(0.932, 0.1), "stays at 0.93 when the best 10 % is blurred; at 0.10 for"),
            (1.0, Blurred(0.0, 1.0), "falls from 1.00 to 0.00 when the best 10 % is blurred; to 1.00 for"),
        ],
    )
    def test_words_of_falling_rising_and_staying(self, probability, blurred, words):
        described = describe_blurred(14, probability, blurred)
        assert described == f"class 14 {words} a random 10 %"

    def test_text_chunk_holds_a_replays_event_id(self):
        changed = explanation(request={"replay_event_id": "event-1", "sha256": "cd" * 32})
        assert opened(changed).text["request"] == "event-1"

    @pytest.mark.parametrize(
        ("probability", "text"),
        [(0.99996, ">99.9%"), (1.0, "100.0%"), (1e-5, "<0.1%"), (0.0, "0.0%"), (0.931, "93.1%")],
    )
    def test_probabilities_are_not_rounded_to_certainty(self, probability, text):
        assert opened(explanation(probability=probability)).text["Title"].startswith(text + " ")

    @pytest.mark.parametrize(
        "class_name",
        [
            None,
            "",
            "End of no passing by vehicles over 3.5 metric tons " * 50,
            "W" * 10_000,
            "\u0301" * 5_000,
            "Überholverbot für Kraftfahrzeuge über 3,5 t",
            "停止",
            "line\nbreak\ttab\0nul\x1b[31m",
            "\ud800",
        ],
    )
    def test_long_class_names_are_cut(self, class_name):
        image = opened(explanation(class_name=class_name, unaccounted=(str(class_name),) * 3, total=7.0))
        pixels = np.asarray(image)
        title = pixels[:48]
        assert (title[:, :18] == PAPER).all()
        assert (title[:, -18:] == PAPER).all()
        banner = (pixels == ALARM).all(2)[:, 0].nonzero()[0]
        assert (pixels[banner][:, -18:] == ALARM).all()

    def test_accents_are_dropped_in_the_drawing(self):
        """The built-in font has none; the text chunk keeps them."""
        with_accent, without = (
            opened(explanation(class_name=class_name)) for class_name in ("Überholen", "Uberholen")
        )
        assert with_accent.tobytes() == without.tobytes()
        assert with_accent.text["Title"].endswith("Überholen")

    def test_same_explanation_gives_the_same_bytes(self):
        assert heatmap.render(explanation()) == heatmap.render(explanation())
        assert heatmap.render(explanation()) != heatmap.render(explanation(probability=0.7))


class TestFacts:
    def test_facts_contain_every_value_of_the_explanation(self):
        facts = json.loads(to_json(heatmap.facts(explanation())))
        assert facts == {
            "predicted_class": 14,
            "class_name": "Stop",
            "probability": 0.75,
            "logit": 8.0,
            "top": [
                {"class_id": 14, "probability": 0.75},
                {"class_id": 1, "probability": 0.15},
                {"class_id": 0, "probability": 0.05},
            ],
            "completeness": {
                "complete": True,
                "logit": 8.0,
                "sum": 8.000001,
                "residual": pytest.approx(1e-6),
                "relative_error": pytest.approx(1.25e-7),
                "sum_abs": 100.0,
                "held": {},
                "unaccounted": [],
            },
            "layers": [
                {"name": "input", "type": "input", "contribution": 5.0, "share": 0.25},
                {"name": "bn1", "type": "BatchNorm2d", "contribution": 3.000001, "share": 0.75},
            ],
            "display": {
                "percentiles": [1.0, 99.5],
                "low": pytest.approx(2.0, abs=0.01),
                "high": pytest.approx(9.0, abs=0.01),
            },
            "input_image": {"height": 48, "width": 48, "channels": 3},
            "model": "ResNet18",
            "trace_form": "reduced",
            "step": 7,
            "sample": 1,
            "request": {"inference_id": "id-1", "custom_attributes": None, "sha256": "ab" * 32, "time": None},
            "blurred": None,
            "unplaced_share": 0.125,
            "quadrants": ANY,
            "answered": None,
            "not_compared": None,
        }

    @pytest.mark.parametrize("answered", [25, "Yield", None])
    def test_facts_contain_another_answer(self, answered):
        found = read_facts(to_json(heatmap.facts(explanation(answered=answered, not_compared="reason"))))
        assert (found.answered, found.not_compared) == (answered, "reason")

    def test_facts_contain_the_probabilities_after_blurring(self):
        facts = to_json(heatmap.facts(explanation(blurred=Blurred(0.125, 0.5))))
        assert json.loads(facts)["blurred"] == {"best": 0.125, "random": 0.5}
        assert read_facts(facts).blurred == Blurred(0.125, 0.5)

    def test_reads_facts_without_the_later_entries(self):
        facts = json.loads(to_json(heatmap.facts(explanation())))
        for later in ("blurred", "unplaced_share", "quadrants", "answered", "not_compared"):
            del facts[later]
        read = read_facts(json.dumps(facts).encode())
        assert (read.blurred, read.unplaced_share, read.quadrants) == (None, None, None)

    @pytest.mark.parametrize("size", [(48, 48), (7, 5), (1, 1)])
    def test_facts_contain_where_the_relevance_is(self, size):
        saliency = np.random.default_rng(1).random(size, np.float32)
        found = heatmap.facts(explanation(*size, saliency=saliency)).quadrants
        top, left = -(-size[0] // 2), -(-size[1] // 2)
        total = saliency.astype(float).sum()
        assert found.upper_left == pytest.approx(saliency[:top, :left].astype(float).sum() / total)
        assert found.lower_right == pytest.approx(saliency[top:, left:].astype(float).sum() / total)
        parts = (found.upper_left, found.upper_right, found.lower_left, found.lower_right)
        assert sum(parts) == pytest.approx(1)

    def test_a_map_of_zeros_has_no_place(self):
        zeros = np.zeros((48, 48), np.float32)
        assert heatmap.facts(explanation(saliency=zeros)).quadrants is None

    @pytest.mark.parametrize(
        "blurred", [{"best": 1.1, "random": 0.5}, {"best": 0.5, "random": -0.1}, {"best": 0.5}, [0.1, 0.2]]
    )
    def test_refuses_facts_that_are_no_probabilities(self, blurred):
        facts = json.loads(to_json(heatmap.facts(explanation()))) | {"blurred": blurred}
        with pytest.raises(ValueError, match=r"\$\.blurred"):
            read_facts(json.dumps(facts).encode())

    def test_zero_logit_has_no_relative_error(self):
        facts = heatmap.facts(explanation(logit=0.0, total=0.0, sum_abs=0.0))
        assert facts.completeness.relative_error is None
        assert facts.completeness.complete is True
        assert opened(explanation(logit=0.0)).text["Description"].endswith("the logit is 0")

    def test_values_stay_finite_for_extreme_logits(self):
        facts = heatmap.facts(explanation(logit=5e-324, total=1e300))
        assert read_facts(to_json(facts)) == facts
        assert math.isfinite(facts.completeness.residual)
