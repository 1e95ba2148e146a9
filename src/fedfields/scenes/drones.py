"""Where a drone's photograph says that it was taken: GPS in EXIF, the gimbal's angles in XMP.

Good to metres and degrees: a start for the alignment with a map, not a pose to train with.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedfields.errors import UserError
from fedfields.scenes.images import FORMATS, open_picture, reading, unusable

_GPS = 0x8825
"""The directory of EXIF that says where a photograph was taken; in it, latitude is 1 and 2, longitude 3 and 4,
altitude 5 and 6."""

_EQUATOR, _FLATTENING = 6_378_137.0, 1 / 298.257223563
"""The ellipsoid of WGS84: metres from the centre to the equator, and how much less it is to the poles."""


class Told(NamedTuple):
    """What a drone told of itself.

    Attributes:
        place: latitude and longitude in degrees (WGS84), altitude in metres.
        gimbal: yaw clockwise from north, pitch upwards from the horizon and roll of the camera, in degrees.
    """

    place: tuple[float, float, float]
    gimbal: tuple[float, float, float]


def told_by(path: Path) -> Told:
    """What the photograph at a path tells of its pose.

    Raises:
        UserError: it cannot be read, or says nothing of it, or something impossible.
    """
    with reading(path) as file, open_picture(path, file, FORMATS) as image:
        gps, packet = dict(image.getexif().get_ifd(_GPS)), image.info.get("xmp", b"")
    xmp = packet.decode("utf-8", "replace") if isinstance(packet, bytes) else str(packet)
    try:
        place = _degrees(gps[2], gps[1], "S"), _degrees(gps[4], gps[3], "W"), _altitude(gps)
        gimbal = _gimbal(xmp)
    except (KeyError, TypeError, ValueError, IndexError, ZeroDivisionError, OverflowError) as error:
        what = "GPS position in EXIF and gimbal angles in XMP"
        raise unusable(path, f"does not tell its {what}", "give a rough pose in another way") from error
    if not (abs(place[0]) <= 90 and abs(place[1]) <= 180 and all(map(math.isfinite, (*place, *gimbal)))):
        raise unusable(path, f"claims to be at {place[0]:g}, {place[1]:g}", "give a rough pose in another way")
    return Told(place, gimbal)


def _degrees(parts: tuple[float, ...], side: str, negative: str) -> float:
    """Degrees from degrees, minutes and seconds."""
    value = sum(float(part) / 60**i for i, part in enumerate(parts))
    return -value if str(side).strip("\0 ").upper() == negative else value


def _altitude(gps: dict[int, object]) -> float:
    """Metres; EXIF has a byte beside them that is 1 below the sea."""
    below = gps.get(5, b"\0") in (1, b"\1")
    return float(gps[6]) * (-1 if below else 1)  # pyright: ignore[reportArgumentType]


def _gimbal(xmp: str) -> tuple[float, float, float]:
    """Yaw, pitch and roll as DJI writes them, as attributes or as elements."""
    found = []
    for name in ("Yaw", "Pitch", "Roll"):
        match = re.search(rf"Gimbal{name}Degree(?:=[\"']|>)\s*([-+.\d]+)", xmp)
        if match is None:
            raise KeyError(name)
        found.append(float(match[1]))
    return found[0], found[1], found[2]


def east_north_up(places: NDArray, origin: NDArray) -> NDArray[np.float64]:
    """Latitude, longitude and altitude ``[..., 3]`` (WGS84) as metres east, north and up of ``origin [3]``."""
    latitude, longitude = np.radians(origin[:2])
    sine, cosine = math.sin(longitude), math.cos(longitude)
    up = [math.cos(latitude) * cosine, math.cos(latitude) * sine, math.sin(latitude)]
    north = [-math.sin(latitude) * cosine, -math.sin(latitude) * sine, math.cos(latitude)]
    return (_geocentric(np.asarray(places)) - _geocentric(np.asarray(origin))) @ np.array(
        [[-sine, cosine, 0], north, up]
    ).T


def _geocentric(places: NDArray) -> NDArray[np.float64]:
    """Metres from the centre of the earth, x through the equator at Greenwich, z through the north pole."""
    latitude, longitude, height = np.radians(places[..., 0]), np.radians(places[..., 1]), places[..., 2]
    squashed = (1 - _FLATTENING) ** 2
    bow = _EQUATOR / np.sqrt(np.cos(latitude) ** 2 + squashed * np.sin(latitude) ** 2)
    across = (bow + height) * np.cos(latitude)
    up = (squashed * bow + height) * np.sin(latitude)
    return np.stack([across * np.cos(longitude), across * np.sin(longitude), up], -1)


def camera_of(gimbal: tuple[float, float, float] | NDArray) -> NDArray[np.float64]:
    """The rotation ``[3, 3]`` of a camera's axes (right, up, back) to east, north and up.

    Yaw turns about the vertical, pitch then about the camera's right, roll then about its view, as aircraft do: at
    zero it looks north, level; yaw 90 looks east, pitch -90 straight down, and roll lowers the right side.
    """
    yaw, pitch, roll = np.radians(np.asarray(gimbal, np.float64))
    turn = np.array([[math.cos(yaw), math.sin(yaw), 0], [-math.sin(yaw), math.cos(yaw), 0], [0, 0, 1]])
    tilt = np.array([[1, 0, 0], [0, math.cos(pitch), -math.sin(pitch)], [0, math.sin(pitch), math.cos(pitch)]])
    lean = np.array([[math.cos(roll), 0, math.sin(roll)], [0, 1, 0], [-math.sin(roll), 0, math.cos(roll)]])
    level = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])  # Right is east, up is up, back is south.
    return turn @ tilt @ lean @ level


def poses_of(told: list[Told], origin: NDArray | None = None) -> NDArray[np.float64]:
    """Camera-to-world poses ``[V, 3, 4]`` in metres east, north and up of ``origin`` (by default, their mean place).

    Raises:
        UserError: there are none.
    """
    if not told:
        raise UserError("no photograph tells where it was taken; give a rough pose in another way")
    places = np.array([one.place for one in told])
    origin = places.mean(0) if origin is None else origin
    turns = np.stack([camera_of(one.gimbal) for one in told])
    return np.concatenate([turns, east_north_up(places, np.asarray(origin))[..., None]], -1)
