"""The output of `make build`."""

import pytest

from local.emulator import ROOT

BUILT = ROOT / ".aws-sam" / "build"
pytestmark = pytest.mark.skipif(not BUILT.is_dir(), reason="needs make build")


def test_the_imaging_layer_is_small():
    """Under 90 MB unzipped, because a cold start of render_saliency loads it."""
    sizes = [path.stat().st_size for path in (BUILT / "ImagingLayer").rglob("*") if path.is_file()]
    assert 10e6 < sum(sizes) < 90e6
