"""Structure from motion by COLMAP, stage by stage: silent, with progress, and stopped by Ctrl-C."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedfields.errors import UserError
from fedfields.scenes.colmap import camera_of
from fedfields.scenes.copies import Copy
from fedfields.scenes.images import printable
from fedfields.scenes.unplaced import ENOUGH, Links
from fedfields.types import Advance

_BLOCK = 10
"""Photographs that are matched with one another at a time; progress is told after each block."""

_OVERLAP = 10
"""Frames of a video that each is matched with, next to it; and as many at distances 2, 4, 8, ..."""

_SMALLEST = 3
"""Models of fewer photographs are not kept."""

_POLL = 0.2
"""Seconds between two looks at how far COLMAP is."""

_MODEL = "SIMPLE_RADIAL"
"""Camera model that is estimated: one focal length and one coefficient of distortion."""

_FATAL = 3
"""COLMAP's level of messages that end the program."""


@dataclass(frozen=True)
class Job:
    """The stages, to be called in turn: cameras, `extract`, one of the `match` methods, `models`; then `links`.

    Attributes:
        pycolmap: the module.
        work: an empty folder for the database.
        images: the copies.
        seed: of everything random.
        threads: 0 takes all cores.
        advance: is told of progress: what, done, total.
    """

    pycolmap: Any
    work: Path
    images: Path
    seed: int
    threads: int
    advance: Advance

    @property
    def database(self) -> str:
        """The file that the stages share."""
        return str(self.work / "database.db")

    def write_cameras(self, groups: list[list[Copy]]) -> None:
        """Enters the copies with one camera for each group, whose members are of one size."""
        self.pycolmap.Database.open(self.database).close()
        for group in groups:
            options = self.pycolmap.ImageReaderOptions()
            options.camera_model = _MODEL
            focal = next((copy.focal for copy in group if copy.focal), None)
            if focal:
                options.camera_params = f"{focal},{group[0].width / 2},{group[0].height / 2},0"
            names = [copy.name for copy in group]
            mode = self.pycolmap.CameraMode.SINGLE
            with _explained("failed in reading the copies"), _quiet(self.pycolmap):
                self.pycolmap.import_images(self.database, str(self.images), mode, image_names=names, options=options)

    def extract(self, count: int, features: int) -> None:
        """SIFT features of ``count`` copies, at most ``features`` each."""
        options = self.pycolmap.FeatureExtractionOptions()
        options.num_threads = self.threads or -1
        options.sift.max_num_features = features

        def call(token: Any) -> None:
            self.pycolmap.extract_features(
                self.database,
                str(self.images),
                extraction_options=options,
                device=self.pycolmap.Device.cpu,
                cancellation_token=token,
            )

        self._run("finding features", call, _extracted, count)

    def match_all(self, count: int) -> None:
        """Matches each of ``count`` copies with each other."""
        pairing = self.pycolmap.ExhaustivePairingOptions()
        pairing.block_size = _BLOCK
        self._match(self.pycolmap.match_exhaustive, pairing, count * (count - 1) // 2)

    def match_neighbours(self, count: int) -> None:
        """Matches each of ``count`` copies with those near it by name."""
        pairing = self.pycolmap.SequentialPairingOptions()
        pairing.overlap = _OVERLAP
        pairing.num_threads = self.threads or -1
        near = sum(min(_OVERLAP, count - 1 - i) for i in range(count))
        far = sum(i + 2**k < count for i in range(count) for k in range(_OVERLAP) if 2**k > _OVERLAP)
        self._match(self.pycolmap.match_sequential, pairing, near + far)

    def _match(self, match: Callable[..., None], pairing: Any, pairs: int) -> None:
        matching, verification = self.pycolmap.FeatureMatchingOptions(), self.pycolmap.TwoViewGeometryOptions()
        matching.num_threads = self.threads or -1
        matching.guided_matching = True
        verification.min_num_inliers = ENOUGH
        verification.ransac.random_seed = self.seed

        def call(token: Any) -> None:
            device = self.pycolmap.Device.cpu
            match(self.database, matching, pairing, verification, device, cancellation_token=token)

        self._run("matching", call, lambda base: base.num_matched_image_pairs(), pairs)

    def models(self, count: int) -> list[Any]:
        """Poses of ``count`` copies: pycolmap's reconstructions, which share no photograph that matters."""
        options = self.pycolmap.IncrementalPipelineOptions()
        options.min_model_size = _SMALLEST
        options.num_threads = self.threads or -1
        options.random_seed = options.mapper.random_seed = options.triangulation.random_seed = self.seed
        placed = [0]
        found: list[Any] = []

        def one_more() -> None:
            placed[0] = min(placed[0] + 1, count)

        def call(token: Any) -> None:
            place = self.work / "models"
            place.mkdir()
            models = self.pycolmap.incremental_mapping(
                self.database,
                str(self.images),
                str(place),
                options,
                next_image_callback=one_more,
                cancellation_token=token,
            )
            found.extend(model for _, model in sorted(models.items()))

        self._run("placing", call, lambda _: placed[0], count)
        return found

    def links(self) -> Links:
        """What matching found, by the names of the copies."""
        with self._opened() as base:
            names = {image.image_id: image.name for image in base.read_all_images()}
            features = {name: base.num_keypoints_for_image(key) for key, name in names.items()}
            pairs, counts = base.read_two_view_geometry_num_inliers()
        both = [self.pycolmap.pair_id_to_image_pair(pair) for pair in pairs]
        matches = {(names[a], names[b]): count for (a, b), count in zip(both, counts, strict=True)}
        return Links(features, matches)

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        base = self.pycolmap.Database.open(self.database)
        try:
            yield base
        finally:
            base.close()

    def _run(self, what: str, call: Callable[[Any], None], done: Callable[[Any], int], total: int) -> None:
        """Calls COLMAP in a thread of its own and tells how far it is; an interruption here stops it there."""
        token = self.pycolmap.CancellationToken()
        failures: list[BaseException] = []

        def guarded() -> None:
            try:
                call(token)
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=guarded, daemon=True)
        with _quiet(self.pycolmap), _explained(f"failed in {what}"), self._opened() as base:
            thread.start()
            try:
                while thread.is_alive():
                    self.advance(what, min(done(base), max(0, total - 1)), total)
                    thread.join(_POLL)
            finally:
                token.cancel()
                thread.join()
            if failures:
                raise failures[0]


def points_seen(model: Any) -> dict[str, int]:
    """How many points each placed copy sees, by name."""
    return {image.name: int(image.num_points3D) for image in model.images.values() if image.has_pose}


def drop_impossible(model: Any) -> None:
    """Takes away photographs whose estimated camera no picture can be rendered with."""
    for image in list(model.images.values()):
        if not image.has_pose:
            continue
        try:
            camera_of(model.cameras[image.camera_id], Path("model"))
        except UserError:
            model.deregister_frame(image.frame_id)


def write_model(model: Any, folder: Path, points: Path) -> None:
    """Writes the model in COLMAP's binary format, and its points in colour as PLY.

    Raises:
        UserError: it cannot be written.
    """
    folder.mkdir(parents=True)
    with _explained("failed in writing the model"):
        model.write_binary(str(folder))
        model.export_PLY(str(points))


def _extracted(base: Any) -> int:
    """How many copies have been looked for features."""
    return sum(base.exists_keypoints(image.image_id) for image in base.read_all_images())


@contextmanager
def _quiet(pycolmap: Any) -> Iterator[None]:
    """COLMAP tells in many lines what it does; whatever matters comes as an exception."""
    before = pycolmap.logging.minloglevel
    pycolmap.logging.minloglevel = _FATAL
    try:
        yield
    finally:
        pycolmap.logging.minloglevel = before


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """One line for whatever COLMAP raises."""
    try:
        yield
    except (UserError, OSError, KeyboardInterrupt):
        raise
    except Exception as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            printable(f"COLMAP {what} ({why}); check the space on the disk, or try fewer or smaller photos")
        ) from error
