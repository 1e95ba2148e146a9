"""A window into a place: the field rendered where the visitor's browser looks, coarse while moving, then finer."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedfields.errors import UserError
from fedfields.rendering.cameras import Camera
from fedfields.runtime.maps import Mapped, MapViewer
from fedfields.runtime.places import Viewer, depth_picture, set_up_place, thinned
from fedfields.runtime.products import Trained, load_place
from fedfields.scenes.tour import Tour
from fedfields.scenes.views import Photo, photo_rays, photos_of

SCALES = (8, 4, 2, 1)
"""Divisors of the final resolution, one after the other while the camera rests."""

PHOTOS = 60
"""Photographs that are shown at most."""


def open_viewer(run: str | Path, *, host: str = "127.0.0.1", port: int = 8080, size: int = 256) -> Any:
    """Starts serving; the server runs in threads of its own until its ``stop()`` is called.

    Args:
        run: a finished run on a place, or a map; the address of a map, as fsspec knows it.
        host: address to bind; this machine only by default.
        port: of the page.
        size: pixels along the shorter side of the finest picture.

    Raises:
        UserError: no such run, viser is missing, or the port is taken.
    """
    trained = load_place(run)
    try:
        import viser
    except ImportError as error:
        raise UserError('the viewer needs viser: pip install "fedfields[viewer]"') from error
    if not _free(host, port):
        raise UserError(f"port {port} on {host} is taken; choose another with --port")
    server = viser.ViserServer(host=host, port=port, verbose=False)
    server.gui.configure_theme(show_share_button=False)  # It would open this page to the world.
    tour = trained.tour
    server.scene.set_up_direction(tour.up)
    shows = server.gui.add_dropdown("show", ("colour", "depth"), initial_value="colour")
    photos = _photos(trained)
    for photo in photos:
        _add_photo(server, photo)
    see = trained.viewer()
    painters: dict[int, _Painter] = {}

    @server.on_client_connect
    def _(client: Any) -> None:
        painter = painters[client.client_id] = _Painter(client, see, size, shows, tour)
        client.camera.on_update(lambda _: painter.moved.set())
        shows.on_update(lambda _: painter.moved.set())
        threading.Thread(target=painter.work, daemon=True).start()

    @server.on_client_disconnect
    def _(client: Any) -> None:
        painter = painters.pop(client.client_id, None)
        if painter is not None:
            painter.gone = True
            painter.moved.set()

    return server


class _Painter:
    """Keeps one visitor's background painted."""

    def __init__(self, client: Any, see: Viewer | MapViewer, size: int, shows: Any, tour: Tour) -> None:
        self.moved, self.gone = threading.Event(), False
        self._client, self._see, self._size, self._shows = client, see, size, shows
        pose = tour.pose(0.7)
        client.camera.position = tuple(pose[:, 3].tolist())
        client.camera.look_at = (0.0, 0.0, 0.0)
        client.camera.up_direction = tour.up
        self.moved.set()

    def work(self) -> None:
        """Paints until the visitor leaves: a coarse picture at once, finer ones while nothing moves."""
        while not self.gone:
            self.moved.wait()
            self.moved.clear()
            for scale in SCALES:
                if self.gone or self.moved.is_set():
                    break
                self._client.scene.set_background_image(self._paint(scale), format="jpeg", jpeg_quality=90)

    def _paint(self, scale: int) -> Any:
        camera = self._client.camera
        height = max(2, self._size // scale)
        width = max(2, round(height * min(4.0, max(0.25, camera.aspect))))
        focal = height / 2 / torch.tan(torch.tensor(camera.fov / 2)).item()
        pinhole = Camera("pinhole", width, height, focal, focal, width / 2, height / 2)
        shown = self._see(photo_rays(pose_of(camera.wxyz, camera.position), pinhole))
        picture = shown.colour.reshape(height, width, 3)
        if self._shows.value == "depth":
            picture = depth_picture(shown).reshape(height, width, 1).expand(-1, -1, 3)
        return (picture.clamp(0, 1) * 255).round().to(torch.uint8).numpy()


def pose_of(wxyz: Any, position: Any) -> Tensor:
    """``[3, 4]`` camera-to-frame in OpenGL axes, of a viser camera (a quaternion in OpenCV axes)."""
    w, x, y, z = (float(value) for value in wxyz)
    rotation = torch.tensor(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
    place = torch.tensor([float(value) for value in position])[:, None]
    return torch.cat([rotation * torch.tensor([1.0, -1.0, -1.0]), place], 1)


def quaternion_of(rotation: Tensor) -> tuple[float, float, float, float]:
    """The quaternion wxyz of a rotation ``[3, 3]``."""
    from scipy.spatial.transform import Rotation

    x, y, z, w = Rotation.from_matrix(rotation.double().numpy()).as_quat()
    return w, x, y, z


def _photos(trained: Trained | Mapped) -> tuple[Photo, ...]:
    """Some of the run's photographs, if they are still where they were; a map has none."""
    if isinstance(trained, Mapped):
        return ()
    try:
        place = set_up_place(trained.experiment).federation
    except UserError:
        return ()
    return tuple(thinned(photos_of(place.clients), PHOTOS))


def _add_photo(server: Any, photo: Photo) -> None:
    """A camera with its picture, small."""
    thin = max(1, max(photo.camera.width, photo.camera.height) // 64)
    server.scene.add_camera_frustum(
        f"/photos/{photo.name.strip('./')}",
        fov=2 * torch.atan(torch.tensor(photo.camera.height / 2 / photo.camera.fy)).item(),
        aspect=photo.camera.width / photo.camera.height,
        scale=0.08,
        image=photo.colours[::thin, ::thin].numpy(),
        wxyz=quaternion_of(photo.pose[:, :3] * torch.tensor([1.0, -1.0, -1.0])),
        position=tuple(photo.pose[:, 3].tolist()),
    )


def _free(host: str, port: int) -> bool:
    import socket

    with socket.socket() as probe:
        return probe.connect_ex((host, port)) != 0
