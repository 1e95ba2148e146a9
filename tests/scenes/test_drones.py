"""GPS and gimbal angles as poses: against surveyed ones, against the laws of the ellipsoid, and by hand."""

import json

import numpy as np
import pytest
from PIL import Image

from fedfields.errors import UserError
from fedfields.mapping.rigid import between, log
from fedfields.scenes.drones import Told, camera_of, east_north_up, poses_of, told_by
from tests.scenes.test_captures import SHARED

DRONE = SHARED / "drone"
needs_drone = pytest.mark.skipif(not DRONE.exists(), reason="needs the drone photographs")


def surveyed():
    """Poses from structure from motion fitted to GPS, what each camera told, and which pictures are upside down."""
    raw = json.loads((DRONE / "gps_raw.json").read_text())
    frames = json.loads((DRONE / "transforms_enu.json").read_text())["frames"]
    names = [frame["file_path"] for frame in frames]
    told = []
    for name in names:
        one = raw[name.split("/")[-1].replace(".jpg", ".JPG")]
        gimbal = tuple(one[f"xmp_Gimbal{part}Degree"] for part in ("Yaw", "Pitch", "Roll"))
        told.append(Told((one["lat"], one["lon"], one["alt"]), gimbal))
    flipped = np.array([frame["image_rotated_180_vs_gimbal_yaw"] for frame in frames])
    return np.array([frame["transform_matrix"] for frame in frames])[:, :3], told, flipped


@needs_drone
def test_the_drones_own_poses_are_as_near_to_surveyed_ones_as_its_sensors_are():
    poses, told, flipped = surveyed()
    ours = poses_of(told)
    gaps = ours[:, :, 3] - poses[:, :, 3]
    assert np.sqrt((gaps[:, :2] ** 2).sum(1).mean()) < 0.7  # The data's notes say 0.64 m and 0.12 m.
    assert np.sqrt((gaps[:, 2] ** 2).mean()) < 0.15
    ours[flipped, :, :2] *= -1  # Half a turn about the view.
    degrees = np.degrees([np.linalg.norm(log(a[:, :3] @ b[:, :3].T)) for a, b in zip(ours, poses, strict=True)])
    assert degrees.max() < 5  # The notes: heading within 3.6 degrees.


@needs_drone
def test_positions_are_those_of_the_survey():
    frames = json.loads((DRONE / "transforms_enu.json").read_text())["frames"]
    origin = json.loads((DRONE / "gps_fit.json").read_text())["origin"]
    places = np.array([one.place for one in surveyed()[1]])
    ours = east_north_up(places, np.array([origin[key] for key in ("lat", "lon", "alt")]))
    assert np.abs(ours - np.array([frame["gps_enu"] for frame in frames])).max() < 0.01


@needs_drone
def test_the_places_are_those_in_the_photographs_exif():
    """Of all 18: gps_raw.json says what the pictures say, in degrees, minutes and seconds as EXIF has them."""
    raw, told = json.loads((DRONE / "gps_raw.json").read_text()), surveyed()[1]
    for name, one in zip(sorted(raw), told, strict=True):
        with Image.open(DRONE / "images" / name.replace(".JPG", ".jpg")) as image:
            gps = image.getexif().get_ifd(0x8825)
        assert (gps[1], gps[3]) == ("N", "W")
        latitude, longitude = (float(a) + float(b) / 60 + float(c) / 3600 for a, b, c in (gps[2], gps[4]))
        assert one.place == pytest.approx((latitude, -longitude, float(gps[6])), abs=1e-8)  # A millimetre.


@needs_drone
def test_a_contribution_starts_where_its_photographs_say_although_a_third_is_upside_down():
    poses, told, _ = surveyed()
    found = between(poses, poses_of(told))
    assert np.degrees(np.linalg.norm(log(found[:, :3]))) < 4
    assert np.linalg.norm(found[:, 3]) < 1


@needs_drone
def test_a_photograph_without_gimbal_angles_is_refused_in_one_line():
    with pytest.raises(UserError, match=r"does not tell .*gimbal angles in XMP; give a rough pose") as caught:
        told_by(DRONE / "images" / "DJI_0018.jpg")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("gimbal", "view", "up"),
    [
        ((0, 0, 0), (0, 1, 0), (0, 0, 1)),
        ((90, 0, 0), (1, 0, 0), (0, 0, 1)),
        ((0, -90, 0), (0, 0, -1), (0, 1, 0)),
        ((90, -90, 0), (0, 0, -1), (1, 0, 0)),
        ((180, -45, 0), (0, -(0.5**0.5), -(0.5**0.5)), (0, -(0.5**0.5), 0.5**0.5)),
        ((0, 0, 90), (0, 1, 0), (1, 0, 0)),
    ],
)
def test_gimbal_angles_by_hand(gimbal, view, up):
    axes = camera_of(gimbal)
    assert np.allclose(-axes[:, 2], view, atol=1e-15)
    assert np.allclose(axes[:, 1], up, atol=1e-15)
    assert np.isclose(np.linalg.det(axes), 1)


def test_metres_are_those_of_the_ellipsoid():
    """A minute of latitude is 1,842.9 m at the equator and 1,861.6 m at the poles: the nautical mile's old trouble."""
    for latitude, metres in ((0.0, 1842.9), (89.99, 1861.57)):
        origin = np.array([latitude, 20.0, 0.0])
        half = np.array([0.5 / 60, 0, 0])
        north = east_north_up(origin + half, origin)[1] - east_north_up(origin - half, origin)[1]
        assert north == pytest.approx(metres, abs=0.1)
    east = east_north_up(np.array([0.0, 1 / 60, 0.0]), np.zeros(3))[0]
    assert east == pytest.approx(2 * np.pi * 6378137 / 360 / 60, abs=0.01)
    assert np.allclose(east_north_up(np.array([46.8, -92.0, 250.0]), np.array([46.8, -92.0, 200.0])), [0, 0, 50])


def photograph(path, exif, xmp):
    found = Image.Exif()
    found.get_ifd(0x8825).update(exif)
    Image.new("RGB", (8, 6)).save(path, exif=found, xmp=xmp)
    return path


GPS = {1: "S", 2: (33.0, 52.0, 10.0), 3: "E", 4: (151.0, 12.0, 36.0), 5: b"\1", 6: 12.5}
ANGLES = b'<rdf:Description drone-dji:GimbalYawDegree="-12.50" drone-dji:GimbalPitchDegree="-60.00" '


@pytest.mark.parametrize(
    "roll", [b'drone-dji:GimbalRollDegree="+1.00"/>', b"><drone-dji:GimbalRollDegree>+1.00</drone-dji:>"]
)
def test_a_photograph_tells_its_pose(tmp_path, roll):
    told = told_by(photograph(tmp_path / "a.jpg", GPS, ANGLES + roll))
    assert told.place == pytest.approx((-(33 + 52 / 60 + 10 / 3600), 151.21, -12.5))
    assert told.gimbal == (-12.5, -60.0, 1.0)


@pytest.mark.parametrize(
    ("exif", "xmp"),
    [
        (GPS, b""),
        ({}, ANGLES + b'GimbalRollDegree="0"'),
        ({**GPS, 2: (133.0, 0.0, 0.0)}, ANGLES + b'GimbalRollDegree="0"'),
        (GPS, ANGLES + b'GimbalRollDegree="1.2.3"'),
    ],
)
def test_what_tells_nothing_or_nonsense_is_refused_in_one_line(tmp_path, exif, xmp):
    with pytest.raises(UserError, match="give a rough pose") as caught:
        told_by(photograph(tmp_path / "a.jpg", exif, xmp))
    assert "\n" not in str(caught.value)
