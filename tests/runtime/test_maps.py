"""Maps to look at, and the commands that make them, on voxels that were written by hand."""

import re
from types import SimpleNamespace

import fsspec
import numpy as np
import pytest
import torch

from fedfields.cli import main
from fedfields.errors import UserError
from fedfields.fields import HashGrid
from fedfields.losses import MarchedLoss
from fedfields.mapping.bake import bake
from fedfields.mapping.commits import merge
from fedfields.mapping.intake import Queue
from fedfields.mapping.merge import Contribution
from fedfields.mapping.packing import contribution_as_bytes
from fedfields.mapping.store import MapSettings, create_map, open_map
from fedfields.mapping.upload import Upload, sent_from_bytes
from fedfields.mapping.voxels import centres, unseen
from fedfields.rendering.marching import Marching
from fedfields.rendering.rays import Rays
from fedfields.runtime.contribute import Training, as_local, cube_below, in_metres, reframed, through_floor, train_field
from fedfields.runtime.maps import MapViewer, load_map
from fedfields.runtime.places import Viewer
from fedfields.runtime.products import load_place, save_grid, save_voxels, volume
from fedfields.scenes.frame import Frame
from fedfields.scenes.town import Town
from fedfields.scenes.views import photo_rays, photos_of
from fedfields.viewer import _Painter, quaternion_of
from tests.runtime.test_products import read_ply

VOXEL = 0.5
FLAT = 0.28209479177387814
TOWN = ["data:town", "--data.extent", "60", "--data.photos", "8", "--data.clients", "2", "--data.least", "4"]
TOWN += ["--data.most", "4", "--data.width", "16", "--data.height", "12", "--data.tests", "0"]
FIELD = ["--field.levels", "4", "--log2-rows", "10", "--finest", "32", "--training.steps", "3", "--batch", "64"]


def slab(name="slab"):
    """Ground below z = 0, red where x is positive and green elsewhere, seen up to 4 m above it; 16 m by 16 m."""
    axes = [np.arange(-2, 2), np.arange(-2, 2), np.arange(-1, 1)]
    coords = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3).astype(np.int32)
    bricks, at = unseen(coords), centres(coords, VOXEL)
    bricks.visits[:] = 1
    bricks.density[:] = np.where(at[..., 2] < 0, 50, 0)
    red = at[..., 0] > 0
    bricks.sh[..., 0], bricks.sh[..., 9] = np.where(red, 20, -20) / FLAT, np.where(red, -20, 20) / FLAT
    bricks.sh[..., 18] = -20 / FLAT
    return Contribution(name, bricks, VOXEL, np.eye(3, 4))


@pytest.fixture
def place(tmp_path):
    store = create_map(tmp_path / "map", MapSettings(VOXEL))
    merge(store, slab())
    return tmp_path / "map"


def down(xy, height=6.0):
    """Rays straight down from points, in metres."""
    count = len(xy)
    origins = torch.tensor([[x, y, height] for x, y in xy])
    return Rays(
        origins, torch.tensor([[0.0, 0.0, -1.0]]).expand(count, 3), torch.zeros(count), torch.full((count,), 12.0)
    )


@pytest.mark.parametrize("budget", [2**32, 2**16], ids=["in memory", "tile by tile"])
def test_a_map_in_the_cube_of_a_frame(place, budget):
    """Red and green ground at z = 0, white beside it; lengths are those of the frame."""
    frame, metres = Frame((1.0, 2.0, -3.0), 10.0), down([(4.0, 1.0), (-4.0, 1.0), (9.5, 0.0)])
    rays = metres._replace(origins=frame.points(metres.origins), near=metres.near / 10, far=metres.far / 10)
    seen = MapViewer(open_map(place).view(), frame, budget=budget)(rays)
    assert np.allclose(seen.colour, [[1, 0, 0], [0, 1, 0], [1, 1, 1]], atol=0.01)
    assert np.allclose(seen.opacity, [1, 1, 0], atol=0.01)
    assert seen.depth[:2].numpy() * 10 == pytest.approx(6.0, abs=VOXEL) and seen.depth[2] == 0


def test_the_frame_holds_the_whole_map(place):
    found = load_map(place)
    low, high = np.array(found.frame.centre) - found.frame.half, np.array(found.frame.centre) + found.frame.half
    assert (low <= [-8, -8, -4]).all() and (high >= [8, 8, 4]).all()
    assert found.frame.half == 32  # Two tiles of 32 m along each axis, around zero.


def test_points_and_grids_are_the_map_s_own_voxels(place, tmp_path):
    count = save_voxels(load_place(place), tmp_path / "points.ply", None)
    points, colours, _ = read_ply(tmp_path / "points.ply")
    assert count == len(points) == 32 * 32 * 8
    assert points.min(0).tolist() == [-7.75, -7.75, -3.75] and points.max(0).tolist() == [7.75, 7.75, -0.25]
    red = points[:, 0] > 0
    assert (colours[red] == [255, 0, 0]).all() and (colours[~red] == [0, 255, 0]).all() and red.sum() == count // 2
    grid = volume(load_place(place), 7, lambda *_: None)
    at = ((torch.tensor([-3.25, 2.75, -1.25]) - grid.low) / grid.spacing).round().long()
    assert grid.density[tuple(at)] == 50 and grid.density[tuple(at + torch.tensor([0, 0, 8]))] == 0
    assert grid.colour[tuple(at)].tolist() == pytest.approx([0, 1, 0], abs=1e-6)
    assert float(grid.density.sum()) == 50 * count
    save_grid(grid, tmp_path / "grid.npz")
    with pytest.raises(UserError, match="lower --level"):
        save_voxels(load_place(place), tmp_path / "none.ply", 51.0)


def test_pictures_from_above(place, tmp_path, capsys):
    from skimage.io import imread

    for words in (["--path", "top"], ["--frames", "2", "--out", str(tmp_path / "orbit")]):
        with pytest.raises(SystemExit) as stop:
            main(["render", str(place), "--size", "48", *words])
        assert stop.value.code == 0
    picture = imread(place / "top.png") / 255
    assert picture.shape[:2] == (48, 48)
    assert np.allclose(picture[24, 27], [1, 0, 0], atol=0.02)  # East is right.
    assert np.allclose(picture[24, 20], [0, 1, 0], atol=0.02) and np.allclose(picture[2, 2], 1, atol=0.02)
    assert len(list((tmp_path / "orbit").glob("*.png"))) == 2


def test_a_map_is_shown_wherever_fsspec_finds_it(place, tmp_path, monkeypatch, capsys):
    """By its address the same picture and the same points; what is made lies here."""
    memory = fsspec.filesystem("memory")
    for path in place.rglob("*"):
        if path.is_file():
            memory.pipe_file(f"/shown/{path.relative_to(place)}", path.read_bytes())
    monkeypatch.chdir(tmp_path)
    for where in (str(place), "memory://shown"):
        for words in (["render", where, "--path", "top", "--size", "24"], ["export", where, "--points", "points.ply"]):
            with pytest.raises(SystemExit) as stop:
                main(words)
            assert stop.value.code == 0
        (tmp_path / "points.ply").rename(tmp_path / f"{len(where)}.ply")
    assert (tmp_path / "top.png").read_bytes() == (place / "top.png").read_bytes()
    one, other = (tmp_path / f"{len(where)}.ply" for where in (str(place), "memory://shown"))
    assert one.read_bytes() == other.read_bytes()
    with pytest.raises(SystemExit) as stop:
        main(["render", "memory://nowhere"])
    assert stop.value.code == 2 and "memory://nowhere is no map" in capsys.readouterr().err


def test_the_page_paints_a_map(place):
    """From 16 m above the middle, straight down: green on the left, red on the right."""
    found, camera = load_place(place), SimpleNamespace(fov=1.0, aspect=1.0)
    painter = _Painter(SimpleNamespace(camera=camera), found.viewer(), 32, SimpleNamespace(value="colour"), found.tour)
    camera.position, camera.wxyz = (0.0, 0.0, 0.5), quaternion_of(torch.diag(torch.tensor([1.0, -1.0, -1.0])))
    picture = painter._paint(1)
    assert picture.shape == (32, 32, 3)
    assert picture[16, 8].tolist() == [0, 255, 0] and picture[16, 24].tolist() == [255, 0, 0]


def command(*words):
    with pytest.raises(SystemExit) as stop:
        main(["map", *map(str, words)])
    return stop.value.code


def test_from_photographs_to_a_map(tmp_path, capsys):
    """Two clients train, send, are merged; the first, a field, is the surveyed one; the second sends voxels."""
    where = tmp_path / "map"
    assert command("create", where, "--voxel", "3", "--precision", "float16", "--mixing.eta", "0.8") == 0
    for i, more in enumerate([["--floor", "-14", "--reach", "20"], ["--send", "voxels", "--name", "second"]]):
        out = tmp_path / f"{i}.safetensors"
        assert command("train", where, *TOWN, *FIELD, "--client", i, "--out", out, *more) == 0
    first = sent_from_bytes((tmp_path / "0.safetensors").read_bytes())
    assert isinstance(first, Upload) and first.local.frame.half < 60 and first.base == 0
    assert command("add", where, tmp_path / "0.safetensors", tmp_path / "1.safetensors") == 0
    assert command("serve", where, "--once") == 0
    store = open_map(where)
    assert {entry.name for entry in store.history()} == {"client-0", "second"} and store.settings.mixing.eta == 0.8
    assert command("show", where) == 0 and "client-0 merged" in capsys.readouterr().out
    assert command("undo", where, "second") == 0 and store.merged_by(store.head, "second") == 0


def test_several_workers_end_when_nothing_is_left(tmp_path):
    queue = Queue(create_map(tmp_path / "map", MapSettings(VOXEL)))
    for name in ("a", "b", "c"):
        queue.put(contribution_as_bytes(slab(name)))
    assert command("serve", tmp_path / "map", "--once", "--workers", "2") == 0
    assert sorted(entry.name for entry in queue.store.history()) == ["a", "b", "c"] and queue.waiting() == []


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["shw", "m"], "did you mean|choose"),
        (["create"], "needs one MAP"),
        (["create", "{map}"], "is a map already"),
        (["create", "{new}", "--voxel", "-1"], "must be positive"),
        (["serve", "{new}"], "is no map"),
        (["serve", "{map}", "--workers", "0"], "at least 1"),
        (["serve", "{map}", "--alignment.views", "0"], "at least 1"),
        (["add", "{map}", "{new}/nothing"], "cannot be read"),
        (["add", "{map}", "{map}/map.json"], "no contribution"),
        (["undo", "{map}", "nobody"], "has no contribution"),
        (["train", "{map}", "data:twn"], "no data 'twn'"),
        (["train", "{map}"], "--data"),
        (["train", "{map}", *TOWN, "--client", "2"], "2 clients"),
        (["train", "{map}", *TOWN, "--send", "pictures"], "field or voxels"),
        (["train", "{map}", *TOWN, "--send", "voxels", "--metres", "3"], "cannot be corrected"),
        (["train", "{map}", *TOWN, "--floor", "90"], "no pixel"),
        (["train", "{map}", *TOWN, "--floor", "-5", "--ceiling", "-6"], "floor that is lower"),
        (["train", "{map}", *TOWN, "--ceiling", "20"], "floor that is lower"),
    ],
)
def test_what_cannot_be_is_one_line(place, tmp_path, capsys, words, why):
    given = [word.format(map=place, new=tmp_path / "new") for word in words]
    assert command(*given) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and re.search(why, said), said


def test_an_empty_map_cannot_be_shown(tmp_path, place, capsys):
    create_map(tmp_path / "empty")
    with pytest.raises(UserError, match="is empty"):
        load_place(tmp_path / "empty")
    with pytest.raises(UserError, match="no weights"):
        load_place(place, tmp_path / "weights.safetensors")


@pytest.fixture(scope="module")
def town():
    town = Town(60, photos=16, clients=1, least=16, most=16, width=24, height=18, lowest=30, highest=40, tests=0)
    return town, town.load(seed=0)


def test_pixels_of_which_the_ray_leaves_through_the_floor(town):
    """Those that meet the floor's plane within the cube, found by hand."""
    frame = Frame((5.0, -3.0, 6.0), 20.0, "white")
    poses = in_metres(photos_of(town[1].clients), town[1].frame)
    photos = reframed(photos_of(town[1].clients), poses, frame)
    kept = {photo.name: photo for photo in through_floor(photos)}
    for photo, pose in zip(photos, poses, strict=True):
        rays = photo_rays(photo.pose, photo.camera)
        way = (-14.0 - pose[2, 3]) / rays.directions[:, 2].double().numpy()
        hit = pose[:, 3] + way[:, None] * rays.directions.double().numpy()
        inside = (way > 0) & (np.abs(hit[:, :2] - [5.0, -3.0]) < 20).all(1)
        found = kept.get(photo.name)
        usable = np.arange(24 * 18) if found is not None and found.usable is None else getattr(found, "usable", [])
        assert np.mean(np.isin(np.arange(24 * 18), usable) != inside) < 0.01, photo.name


def test_nothing_above_the_ceiling_counts_as_seen(town):
    """Through clear air, rays see all of the cube that is below; the untrained field is as good as clear."""
    frame = cube_below(in_metres(photos_of(town[1].clients), town[1].frame), -14.0, 20.0)
    poses = in_metres(photos_of(town[1].clients), town[1].frame)
    mine = through_floor(reframed(photos_of(town[1].clients), poses, frame), frame.height(10.0))
    field = HashGrid(levels=2, log2_rows=8, finest=16)
    found = as_local("me", field, field.init(torch.Generator().manual_seed(0)), mine, frame, 1.0)
    size = len(found.seen)
    heights = frame.centre[2] + frame.half * ((2 * np.flatnonzero(found.seen.any((0, 1))) + 1) / size - 1)
    assert heights.min() < -13 and 9 < heights.max() < 12  # And the cells next to them.
    less = as_local("me", field, field.init(torch.Generator().manual_seed(0)), mine, frame, 1.0, margin=8.5).seen
    edge = int(np.ceil(8.5 / (2 * frame.half / size)))
    assert np.array_equal(less[edge:-edge, edge:-edge], found.seen[edge:-edge, edge:-edge]) and less.any()
    assert less.sum() == less[edge:-edge, edge:-edge].sum() < found.seen.sum()


def test_a_penalty_takes_the_view_dependence(town):
    """After the same steps, colours differ far less between directions."""
    photos = photos_of(town[1].clients)
    field, marching = HashGrid(levels=4, log2_rows=10, finest=32), Marching(steps=64, samples=4096, cells=16)
    shine = []
    for gloss in (0.0, 0.1):
        training = Training(field, marching, 256, 60, gloss=gloss)
        params, _ = train_field("me", photos, town[1].frame, training, 0, lambda done, total: None)
        shades = field.coefficients(params, field.latents(params, torch.rand(500, 3) * 0.4 - 0.2))
        shine.append(float(shades[..., 1:].square().mean()))
    assert shine[1] < 0.3 * shine[0]
    with pytest.raises(ValueError, match="gloss is -1"):
        Training(gloss=-1)


def test_a_cube_below_cameras():
    poses = np.zeros((2, 3, 4))
    poses[:, :, 3] = [[10, 0, 50], [40, 20, 60]]
    assert cube_below(poses, -5.0, 7.0) == Frame((25.0, 10.0, 17.0), 22.0)
    with pytest.raises(UserError, match="give them some"):
        cube_below(poses[:1], 0.0, 0.0)


def test_a_local_field_in_the_map_looks_like_its_photographs(town, tmp_path):
    """Trained in axes of the client's own, a quarter turned; baked under its pose, and under a wrong one."""
    poses, photos = in_metres(photos_of(town[1].clients), town[1].frame), photos_of(town[1].clients)
    turn = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    own = np.concatenate([turn.T @ poses[:, :, :3], (poses[:, :, 3] @ turn)[:, :, None]], 2)
    cube = cube_below(own, -14.0, 25.0)
    mine = through_floor(reframed(photos, own, cube))
    field, marching = HashGrid(levels=6, log2_rows=13, finest=64), Marching(steps=128, samples=4096, cells=32)
    params, _ = train_field("me", mine, cube, Training(field, marching, 256, 200), 0, lambda done, total: None)
    local = as_local("me", field, params, mine, cube, VOXEL)
    assert 0.02 < local.seen.mean() < 0.9
    kept = {photo.name: photo.usable for photo in mine}

    def score(see, photos):
        """PSNR of the pixels that were trained on."""
        errors = []
        for photo in photos:
            usable = slice(None) if kept[photo.name] is None else kept[photo.name]
            shown = see(photo_rays(photo.pose, photo.camera)).colour
            errors.append((shown - photo.colours.reshape(-1, 3) / 255)[usable].square())
        return -10 * float(torch.cat(errors).mean().log10())

    field_alone = score(Viewer(MarchedLoss(field, marching), params, 0), mine)
    found = {}
    for name, rotation in {"right": turn, "wrong": np.eye(3)}.items():
        store = create_map(tmp_path / name, MapSettings(VOXEL))
        merge(store, bake(local, np.concatenate([rotation, np.zeros((3, 1))], 1), VOXEL))
        found[name] = score(MapViewer(store.view(), town[1].frame), [p for p in photos if p.name in kept])
    assert found["right"] > field_alone - 1.5 and found["right"] > found["wrong"] + 3, (field_alone, found)
