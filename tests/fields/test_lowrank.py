"""Low-rank weights with a shared factor: laws, and numbers by hand."""

import pytest
import torch

from fedfields.fields import CoarseFine, Factored, HashGrid, LowRank, Nerf, expanded

FIELDS = {
    "hash-grid": HashGrid(levels=4, log2_rows=8, coarsest=4, finest=16, width=24, latent=7),
    "nerf": Nerf(width=24, depth=3, octaves=3, direction_octaves=2, skip=2),
    "coarse-fine": CoarseFine(Nerf(width=24, depth=3, octaves=3, direction_octaves=2, skip=2)),
}


def random(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_rank_is_the_smallest_that_reaches_the_energy():
    """Of the sum of singular values: that of their squares would be reached by one value at 0.5."""
    singular = torch.tensor([4.0, 3.0, 2.0, 1.0])
    ranks = {energy: LowRank(energy).rank_of(singular) for energy in (0.1, 0.4, 0.41, 0.5, 0.7, 0.9, 0.91, 1.0)}
    assert ranks == {0.1: 1, 0.4: 1, 0.41: 2, 0.5: 2, 0.7: 2, 0.9: 3, 0.91: 4, 1.0: 4}
    assert [LowRank(rank=rank).rank_of(singular) for rank in (1, 3, 9)] == [1, 3, 4]


def test_a_matrix_is_split_where_that_saves():
    """diag(3, 2, 1): L = U_r S_r and R = V_r^T are known, up to signs; of full rank it stays whole."""
    matrix = torch.diag(torch.tensor([3.0, 2.0, 1.0]))
    params = {"a.weight": matrix, "a.bias": torch.ones(3), "table": torch.ones(3, 3)}
    trained, shared = LowRank(rank=2).factors(params)
    assert list(trained) == list(params) and list(shared) == ["a.weight"]
    assert torch.allclose(trained["a.weight"].abs(), matrix[:, :2]) and trained["a.weight"].is_contiguous()
    assert torch.allclose(shared["a.weight"].abs(), torch.eye(3)[:2])
    assert torch.allclose(expanded(trained, shared)["a.weight"], torch.diag(torch.tensor([3.0, 2.0, 0.0])))
    whole, none = LowRank(rank=3).factors(params)
    assert none == {} and whole["a.weight"] is matrix and trained["table"] is params["table"]


def test_the_best_matrix_of_that_rank():
    """Eckart and Young: the squared error is the sum of the squares of the singular values left out."""
    matrix = torch.randn(7, 11, generator=random(), dtype=torch.float64)
    singular = torch.linalg.svdvals(matrix)
    for rank in range(1, 7):
        found = expanded(*LowRank(rank=rank).factors({"x.weight": matrix}))["x.weight"]
        assert torch.allclose((found - matrix).square().sum(), singular[rank:].square().sum())
        assert torch.linalg.matrix_rank(found) == rank


def test_the_mean_of_what_is_sent_is_the_mean_of_the_fields():
    start = FIELDS["nerf"].init(random())
    _, shared = LowRank(0.6).factors({key: leaf.double() for key, leaf in start.items()})
    sent = [
        {key: torch.randn(leaf.shape[0], len(shared[key]), generator=random(seed), dtype=torch.float64)}
        for key, leaf in start.items()
        if key in shared
        for seed in range(3)
    ]
    for key in shared:
        lefts = [one[key] for one in sent if key in one]
        mean_sent = expanded({key: torch.stack(lefts).mean(0)}, shared)[key]
        mean_whole = torch.stack([expanded({key: left}, shared)[key] for left in lefts]).mean(0)
        assert len(lefts) == 3 and torch.allclose(mean_sent, mean_whole, atol=1e-12)


@pytest.mark.parametrize("name", list(FIELDS))
def test_full_rank_is_the_field_itself_and_gradients_reach_all_that_is_trained(name):
    field, positions = FIELDS[name], 2 * torch.rand(50, 3, generator=random(1)) - 1
    directions = torch.nn.functional.normalize(torch.randn(50, 3, generator=random(2)), dim=1)
    params = field.init(random())
    trained, shared = LowRank(energy=1.0).factors(params)
    factored = Factored(field, shared)
    asked = {"itself": (field, factored)}
    if name == "hash-grid":
        asked["density"] = (lambda p, x, d: (field.density(p, x),), lambda p, x, d: (factored.density(p, x),))
    if name == "coarse-fine":
        asked["coarse"] = (field.coarse, factored.coarse)
    else:
        assert not hasattr(factored, "coarse")
    assert shared and any(leaf.shape != params[key].shape for key, leaf in trained.items())
    for plain, wrapped in asked.values():
        for a, b in zip(plain(params, positions, directions), wrapped(trained, positions, directions), strict=True):
            assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)
    leaves = {key: leaf.requires_grad_() for key, leaf in trained.items()}
    sum(value.sum() for _, wrapped in asked.values() for value in wrapped(leaves, positions, directions)).backward()
    assert all(leaf.grad is not None and leaf.grad.abs().sum() > 0 for leaf in leaves.values())


@pytest.mark.parametrize("settings", [{"energy": 0.0}, {"energy": 1.1}, {"rank": -1}])
def test_nonsense_is_refused(settings):
    with pytest.raises(ValueError, match=f"compression.{next(iter(settings))} is"):
        LowRank(**settings)


def test_codes_of_appearance_are_read_through_the_factors():
    """A factored field says how long its codes are, and with full rank colours them as the field itself does."""
    field = Nerf(width=24, depth=3, octaves=3, direction_octaves=2, skip=2, appearance=5)
    params = field.init(random())
    trained, shared = LowRank(energy=1.0).factors(params)
    factored = Factored(field, shared)
    points, ways, codes = (torch.randn(7, n, generator=random(n)) for n in (3, 4, 5))
    ways = torch.nn.functional.normalize(ways[:, :3], dim=1)
    assert factored.appearance == 5 and Factored(FIELDS["nerf"], {}).appearance == 0
    for found, wanted in zip(factored(trained, points, ways, codes), field(params, points, ways, codes), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
