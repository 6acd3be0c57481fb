import sys

import numpy as np
import pytest
import scipy.ndimage
import torch
from torch import nn

from benchmarks.attribution_maps import OURS, RANDOM, maps_of, peers, variants_of
from benchmarks.pixel_flipping import (
    CELL,
    SIGMA,
    Areas,
    areas,
    attacked,
    blurred,
    flipping_rows,
    inputs,
    interval,
    main,
    randomisation_rows,
    randomised,
    ranked,
)
from benchmarks.small_networks import FAMILIES, SIZE, last_feature_map, trained
from complete_gradients import complete_gradients
from train import Samples, normalised

pytestmark = pytest.mark.usefixtures("one_thread")

SIDE = SIZE // CELL


class OfOneCell(nn.Module):
    """Returns logits 100 · (mean of the first channel in one cell) and 0."""

    def __init__(self, row=3, column=5):
        super().__init__()
        self.rows, self.columns = (slice(CELL * i, CELL * i + CELL) for i in (row, column))

    def forward(self, images):
        score = 100 * images[:, 0, self.rows, self.columns].mean((1, 2))
        return torch.stack((score, torch.zeros_like(score)), 1)


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def network(family):
    torch.manual_seed(0)
    return FAMILIES[family]().eval()


def noise(count=8, seed=0):
    random = np.random.default_rng(seed)
    images = torch.from_numpy(random.integers(0, 256, (count, 3, SIZE, SIZE), np.uint8))
    return Samples(images, torch.from_numpy(random.integers(0, 43, count)))


def image(seed=0):
    return normalised(noise(1, seed).images / 255)


def test_cells_are_ranked_by_their_mean_and_ties_by_their_place():
    relevance = np.zeros((SIZE, SIZE), np.float32)
    relevance[CELL * 2, CELL * 7] = 3.0
    relevance[CELL : 2 * CELL, :CELL] = 1.0
    assert ranked(relevance)[:3].tolist() == [1 * SIDE, 2 * SIDE + 7, 0]


def test_the_blur_is_scipys_gaussian_filter():
    expected = scipy.ndimage.gaussian_filter(
        image().double().numpy(), SIGMA, axes=(2, 3), mode="mirror", truncate=2.0
    )
    np.testing.assert_allclose(blurred(image()).numpy(), expected, atol=1e-5)


def test_a_map_of_the_only_cell_that_matters_gets_the_areas_of_its_steps():
    x = torch.zeros(1, 3, SIZE, SIZE)
    network = OfOneCell()
    x[:, :, network.rows, network.columns] = 1.0
    cell = 3 * SIDE + 5
    order = np.array([cell, *(i for i in range(SIDE * SIDE) if i != cell)])
    with torch.no_grad():
        low = float(network(blurred(x)).softmax(1)[0, 0])
    (found,) = areas(network, x, 0, [order])
    assert found.morf == pytest.approx((1 + 10 * low) / 11)
    assert found.lerf == pytest.approx((10 + low) / 11)
    assert found.deletion == pytest.approx((1 + 10 * 0.5) / 11)  # the mean colour is 0
    assert found.tenth == pytest.approx(low)
    (opposite,) = areas(network, x, 0, [order[::-1]])
    assert (opposite.morf, opposite.lerf) == pytest.approx((found.lerf, found.morf))
    assert opposite.tenth == pytest.approx(1)


def test_the_interval_is_that_of_a_mean():
    differences = np.random.default_rng(0).normal(0.3, 1.0, 400)
    mean, low, high = interval(differences)
    error = differences.std() / 20
    assert mean == pytest.approx(differences.mean())
    assert (low, high) == pytest.approx((mean - 1.96 * error, mean + 1.96 * error), abs=0.2 * error)


def test_the_interval_of_equal_differences_has_no_width():
    assert interval([0.25] * 10) == pytest.approx((0.25, 0.25, 0.25))


def test_ours_is_the_heat_map_of_the_stack_and_the_signed_map_adds_up(network, family):
    (found,) = complete_gradients(network, image(), [4], keep_values=True)
    signed = variants_of(found)["signed"]
    placed = sum(term.total for term in found.terms if term.map is not None)
    assert signed.sum(dtype=np.float64) == pytest.approx(placed, abs=1e-5 * found.sum_abs)
    absolute = variants_of(found)["absolute"]
    placed = sum(term.sum_abs for term in found.terms if term.map is not None)
    assert absolute.sum(dtype=np.float64) >= abs(signed).sum() * (1 - 1e-5)
    assert absolute.sum(dtype=np.float64) == pytest.approx(placed, rel=1e-5)


def test_the_input_alone_is_input_times_gradient(network):
    x = image().requires_grad_()
    (found,) = complete_gradients(network, x.detach(), [4], keep_values=True)
    alone = variants_of(found)["input only"]
    term = found.terms[0]
    expected = ((term.values.abs() - term.minimum) / (term.maximum - term.minimum + 1e-6)).sum(1)[0]
    np.testing.assert_allclose(alone, expected.numpy(), atol=1e-5)


def test_permuting_the_last_layer_leaves_the_others(network):
    changed = randomised(network, 0, head_only=True)
    pairs = list(zip(network.parameters(), changed.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs[:-2])
    assert not torch.equal(*pairs[-2])
    assert torch.equal(pairs[-2][0].flatten().sort()[0], pairs[-2][1].flatten().sort()[0])


def test_permuting_all_layers_leaves_the_network(network):
    before = [parameter.clone() for parameter in network.parameters()]
    changed = randomised(network, 0, head_only=False)
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    assert not torch.equal(before[0], next(changed.parameters()))


def test_an_attack_stays_in_reach_and_lowers_the_class(network):
    clean = noise(1).images / 255
    target = int(network(normalised(clean)).argmax())
    found = attacked(network, clean, target, reach=8 / 255)
    assert float((found - clean).abs().max()) <= 8 / 255 + 1e-6
    assert float(found.min()) >= 0 and float(found.max()) <= 1
    before, after = (network(normalised(x)).softmax(1)[0, target] for x in (clean, found))
    assert after < before


def test_only_correct_predictions_are_explained(network):
    samples = noise(6)
    with torch.no_grad():
        predicted = network(normalised(samples.images / 255)).argmax(1)
    classes = predicted.clone()
    classes[::2] += 1
    chosen = inputs(network, Samples(samples.images, classes), 5, adversarial=False)
    assert [target for _, target in chosen] == predicted[1::2].tolist()


def test_an_attacked_image_is_explained_for_the_wrong_class():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 43))
    samples = noise(4)
    with torch.no_grad():
        predicted = network(normalised(samples.images / 255)).argmax(1)
    chosen = inputs(network, Samples(samples.images, predicted), 4, adversarial=True)
    assert len(chosen) == 4  # a linear network is easy to attack
    for (attacked_image, target), before in zip(chosen, predicted.tolist(), strict=True):
        assert target == int(network(attacked_image).argmax())
        assert target != before


def test_weights_are_read_again_without_training(tmp_path, family):
    file = tmp_path / "weights" / "network.pt"
    first = trained(family, 0, noise, file, effort=1e-6)

    def fails():
        raise AssertionError("expected no training")

    second = trained(family, 0, fails, file)
    assert not first.training and not second.training
    torch.testing.assert_close(first(image()), second(image()))


def test_training_continues_from_another_network(network, family):
    start = trained(family, 1, noise, None, effort=1e-6)
    found = trained(family, 0, noise, None, effort=1e-6, start=start)
    first, other, random = (next(n.parameters()).flatten() for n in (start, found, network))
    assert (other - first).abs().max() < 0.02 < (other - random).abs().max()


def test_every_family_has_a_last_feature_map(network, family):
    shapes = []
    last_feature_map(family, network).register_forward_hook(lambda m, i, o: shapes.append(tuple(o.shape)))
    network(image())
    assert shapes == [(1, 65, 96)] if family == "ViT" else shapes[0][2:] == (6, 6)


def test_no_correct_prediction_is_an_error(network):
    samples = noise(2)
    with torch.no_grad():
        predicted = network(normalised(samples.images / 255)).argmax(1)
    with pytest.raises(ValueError, match="expected some that are correctly classified, got none of 2"):
        inputs(network, Samples(samples.images, (predicted + 1) % 43), 2, adversarial=False)


@pytest.mark.parametrize("options", [[], ["--adversarial"], ["--randomise"]])
def test_the_command_prints_a_table(tmp_path, capsys, options):
    torch.manual_seed(0)
    torch.save(FAMILIES["ViT"]().state_dict(), tmp_path / "signs-ViT-0.pt")
    main(["--weights", str(tmp_path), "--families", "ViT", "--seeds", "0", "--images", "1", *options])
    assert "Glassbox" in capsys.readouterr().out


def test_missing_libraries_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "captum", None)
    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", None)
    assert [line.partition(":")[0] for line in peers()] == ["captum", "pytorch-grad-cam"]
    torch.manual_seed(0)
    network = FAMILIES["ResNet"]().eval()
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    assert list(maps_of(network, "ResNet", image(), 0, 0, variants=False)) == [OURS, RANDOM]


def test_a_small_run_has_a_row_for_each_map():
    torch.manual_seed(0)
    network = FAMILIES["ViT"]().eval()
    samples = noise(3)
    with torch.no_grad():
        predicted = network(normalised(samples.images / 255)).argmax(1)
    held_out = Samples(samples.images, predicted)
    rows = flipping_rows({0: network}, "ViT", held_out, 3, adversarial=False, variants=True)
    assert {OURS, RANDOM, "signed", "absolute", "input only"} <= {row["map"] for row in rows}
    assert {row["images"] for row in rows} == {"3 clean"}
    for row in rows:
        area = Areas(row["MoRF"], row["LeRF"], row["deletion"], row["best tenth"])
        assert row["LeRF − MoRF"] == pytest.approx(area.difference)
    (ours, *_) = randomisation_rows(network, "ViT", held_out, 2)
    assert ours["map"] == OURS
    assert set(ours) == {"family", "map", "last layer permuted", "all layers permuted"}
