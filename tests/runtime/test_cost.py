"""Operations of a run, counted by hand."""

import dataclasses

import pytest

from fedfields.config import preset
from fedfields.fields import CoarseFine, HashGrid, Nerf, Personal
from fedfields.objectives import Fit, Maml, Proximal
from fedfields.privacy import SecAgg
from fedfields.rendering.marching import Marching
from fedfields.rendering.rays import RenderSettings
from fedfields.runtime.cost import server_flops, visit_flops
from fedfields.seeds import generator


def test_the_server_adds_reports_and_takes_a_step():
    assert server_flops(entries=10, weights=7, present=3, dropped=1, sums=None) == 3 * 10 + 2 * 7


@pytest.mark.parametrize("neighbours, shared", [(0, 4), (2, 2), (40, 4)])
def test_under_secure_sums_it_also_takes_masks_off(neighbours, shared):
    """Four present, one dropped: four private masks, and those that the one shared; a word and an addition each."""
    found = server_flops(entries=10, weights=7, present=4, dropped=1, sums=SecAgg(neighbours=neighbours))
    assert found == 4 * 10 + 2 * 7 + 2 * 10 * (4 + shared)


def experiment(**changes):
    local = dataclasses.replace(preset("decentnerf").local, steps=3)
    return dataclasses.replace(preset("decentnerf"), local=local, **changes)


GRID = HashGrid(levels=2, log2_rows=4, coarsest=2, finest=4, width=3, latent=1)
WEIGHTS = 4 * 3 + 3 * 2 + 2 * 3 + 3 * 27
"""Two levels of two features, three hidden units, density and one latent; then the colours' 27 coefficients."""


def test_a_visit_with_marched_rays_and_a_personal_field():
    one = experiment(
        field=GRID, rays=Marching(samples=500), objective=Fit(batch=64), personal=Personal(GRID, after=0.5)
    )
    sample = 6 * WEIGHTS + 2 * (2 * 8 * 2 * 2)  # Forward and back, a product and a sum for each feature of 8 corners.
    params = GRID.init(generator(0, "x"))
    assert visit_flops(one, params, 0.4) == 3 * 500 * sample
    assert visit_flops(one, params, 0.5) == 3 * 500 * 2 * sample
    pulled = dataclasses.replace(one, objective=Proximal(Fit(batch=64)))
    assert visit_flops(pulled, params, 0.4) == 3 * 500 * sample


def test_a_visit_with_a_coarse_and_a_fine_field():
    field = CoarseFine(Nerf(width=8, depth=2, skip=9, octaves=1, direction_octaves=1))
    params = field.init(generator(0, "x"))
    half = sum(leaf.numel() for leaf in params.values()) // 2
    one = experiment(field=field, rays=RenderSettings(samples=4, fine=2), objective=Fit(batch=10), personal=None)
    assert visit_flops(one, params, 0.0) == 3 * 10 * (4 + 6) * 6 * half


def test_what_is_not_plain_fitting_is_not_counted():
    assert visit_flops(experiment(objective=Maml()), {}, 0.0) is None
    assert visit_flops(preset("maml"), {}, 0.0) is None
