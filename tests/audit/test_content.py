"""Personal content: a render that is the place, the photograph, or part of both has a closed form."""

import math

import pytest
import torch

from fedfields.audit.content import Content, content_of, over_owners
from fedfields.scenes.monument import Monument


@pytest.fixture(scope="module")
def shots():
    return Monument(users=2, views=2, size=32, tests=0).load().occluded[0]


def covered(shots, which):
    colours = [(one.photo.colours if which == "image" else one.clean)[one.mask] for one in shots]
    return torch.cat(colours).float() / 255


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_mixture_leaks_its_share(shots, share):
    clean, image = covered(shots, "clean"), covered(shots, "image")
    asked = []

    def see(rays):
        asked.append(len(rays.near))
        return clean + share * (image - clean)

    found = content_of(see, shots)
    assert asked == [sum(int(one.mask.sum()) for one in shots)]
    assert found.leak == pytest.approx(share, abs=1e-5)
    assert found.floor == pytest.approx(-10 * math.log10(float((clean - image).square().mean())), abs=1e-3)
    if share < 1:
        assert found.psnr == pytest.approx(found.floor - 20 * math.log10(1 - share), abs=1e-3)
    else:
        assert found.psnr > 100


def test_the_rays_are_those_of_the_covered_pixels(shots):
    """Row by row, photograph by photograph, as the colours are: each one goes through its own pixel."""
    rays = []
    content_of(lambda each: rays.append(each) or covered(shots, "clean"), shots)
    first = 0
    for one in shots:
        pixels = one.mask.nonzero()
        local = one.photo.camera.directions(pixels).float() @ one.photo.pose[:, :3].T
        wanted = torch.nn.functional.normalize(local, dim=1)
        assert torch.allclose(rays[0].directions[first : first + len(pixels)], wanted, atol=1e-6)
        first += len(pixels)
    assert first == len(rays[0].near)


def test_an_owner_without_people_in_the_way_is_left_out(shots):
    bare = [one._replace(mask=torch.zeros_like(one.mask)) for one in shots]
    assert content_of(lambda rays: torch.zeros(0, 3), bare) is None


def test_mean_and_worst_over_owners():
    found = over_owners([Content(0.1, 5.0, 4.0), Content(0.5, 9.0, 6.0)])
    assert found == {"leak": 0.3, "psnr": 7.0, "floor": 5.0, "leak_worst": 0.5, "psnr_worst": 9.0, "owners": 2}
