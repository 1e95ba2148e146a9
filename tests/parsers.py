"""Feeds every reader of files and messages with changed, foreign and explosive content, and measures it.

``python -m tests.parsers FOLDER CASES`` prints as JSON, for each reader, how many inputs were used, refused in one
line, or a crash; the longest that one took, in seconds of CPU time; and by how much the process grew at most, in MB.
"""

import io
import json
import random
import struct
import sys
import time
import traceback
import warnings
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fedfields.config import preset, to_json
from fedfields.errors import UserError
from fedfields.federation import ServerState
from fedfields.gallery import save_picture
from fedfields.perceptual import load_lpips
from fedfields.privacy.secure import Abandoned, Stage
from fedfields.report.runs import read_run
from fedfields.runtime.checkpoint import Checkpoint, Uploads, load, load_weights, save, save_weights
from fedfields.runtime.products import _poses
from fedfields.runtime.run import load_experiment
from fedfields.scenes.clips import load_clip
from fedfields.scenes.colmap_files import check_counts
from fedfields.scenes.data import Data
from fedfields.scenes.frame import Frame, load_frame
from fedfields.scenes.images import load_image
from fedfields.scenes.llff import read_llff
from fedfields.scenes.meganerf import read_meganerf
from fedfields.scenes.ply import read_points
from fedfields.scenes.tour import Tour, load_tour
from fedfields.scenes.transforms import read_transforms
from tests.helpers import params_of
from tests.privacy.test_hostile import message_of, play, settings_of
from tests.scenes.test_captures import frame, model_of, picture, write_json, write_llff, write_meganerf, write_model
from tests.scenes.test_hostile import AROUND, changed, damaged


def as_json(dice, content):
    """JSON with parts replaced, or bytes changed."""
    return damaged(dice, content) if dice.random() < 0.4 else changed(dice, json.loads(content))


def readers(folder):
    """For each reader: a file that is right, how it is changed, and how it is read."""
    save_weights(folder / "weights.safetensors", params_of())
    found = {"weights": (folder / "weights.safetensors", damaged, load_weights)}
    save(folder / "checkpoints", Checkpoint(ServerState(params_of(), {}, 1), {0: {"c": params_of(1)}}, Uploads({}, {})))
    newest = folder / "checkpoints" / "round-000001.safetensors"
    found["checkpoint"] = (newest, damaged, lambda file: load(file.parent))
    run = folder / "run"
    run.mkdir()
    (run / "experiment.json").write_text(json.dumps({"preset": "maml", "experiment": to_json(preset("fedmenf"))}))
    found["experiment.json"] = (run / "experiment.json", as_json, lambda file: load_experiment(file.parent))
    record = {"round": 1, "psnr": {"unseen": {"0": 9.5}}, "leak": {"worst": 3.0}, "cohort": ["a"], "seconds": 0.5}
    figures = folder / "figures"
    figures.mkdir()
    (figures / "experiment.json").write_text("{}")
    (figures / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    found["metrics.jsonl"] = (figures / "metrics.jsonl", as_json, lambda file: read_run(file.parent).latest("psnr"))
    Tour().save(folder / "tour.json")
    found["tour.json"] = (folder / "tour.json", as_json, lambda file: load_tour(file).orbit(2))
    Frame((1.0, 2.0, 3.0), 2.0).save(folder / "scene.json")
    found["scene.json"] = (folder / "scene.json", as_json, load_frame)
    (folder / "path.json").write_text(json.dumps({"frames": [frame("a", transform_matrix=pose) for pose in AROUND]}))
    found["path.json"] = (folder / "path.json", as_json, camera_path)
    return found | of_captures(folder) | of_pictures(folder)


def camera_path(file):
    class Run:
        frame = Frame((0.0, 0.0, 0.0), 1.0)

    return _poses(Run, str(file), 2)  # pyright: ignore


def of_captures(folder):
    capture = folder / "capture"
    for name in "abc":
        picture(capture / "images" / f"{name}.png")
    frames = [frame(f"images/{name}.png", transform_matrix=pose) for name, pose in zip("abc", AROUND, strict=True)]
    write_json(capture, frames, near=1.0, far=4.0)
    found = {"transforms.json": (capture / "transforms.json", as_json, read_transforms)}
    for order in ("ascii", "binary_little_endian"):
        head = f"ply\nformat {order} 1.0\nelement vertex 5\n" + "".join(f"property float {axis}\n" for axis in "xyz")
        values = np.arange(15, dtype="<f4").reshape(5, 3)
        body = values.tobytes() if order != "ascii" else b"".join(b"%g %g %g\n" % tuple(row) for row in values)
        file = folder / f"{order}.ply"
        file.write_bytes(head.encode() + b"end_header\n" + body)
        found[f"PLY ({order.split('_')[0]})"] = (file, damaged, read_points)
    file = write_llff(folder / "llff") / "poses_bounds.npy"
    found["poses_bounds.npy"] = (file, damaged, lambda file: read_llff(file.parent))
    file = write_meganerf(folder / "mega") / "train" / "metadata" / "000002.pt"
    found["metadata.pt"] = (file, damaged, lambda file: read_meganerf(folder / "mega"))
    torch.save({"features.0.weight": torch.zeros(64, 3, 11, 11)}, folder / "alex.pth")
    found["weights.pth"] = (folder / "alex.pth", damaged, load_lpips)
    write_model(model_of(rigs=1, points=12), folder / "colmap" / "sparse", folder / "colmap" / "images")
    file = folder / "colmap" / "sparse" / "images.bin"
    return found | {"images.bin": (file, damaged, lambda file: check_counts(file.parent))}


def of_pictures(folder):
    values = torch.rand(3, 12, 16, 3, generator=torch.Generator().manual_seed(0))
    save_picture(folder / "a.png", values[0])
    image = Image.open(folder / "a.png")
    image.save(folder / "a.jpg")
    image.save(folder / "a.gif", save_all=True, append_images=[image.rotate(90)])
    np.savez_compressed(folder / "a.npz", frames=(values * 255).byte().numpy())
    (folder / "split.csv").write_text("file,client\na.png,p\na.jpg,q\n")
    split = lambda file: Data(folder, split=file).load(0)  # noqa: E731
    return {
        "PNG": (folder / "a.png", damaged, load_image),
        "JPEG": (folder / "a.jpg", damaged, load_image),
        "GIF": (folder / "a.gif", damaged, load_clip),
        "npz": (folder / "a.npz", damaged, load_clip),
        "split.csv": (folder / "split.csv", damaged, split),
    }


# ---- Content that is small and would be large.


def zip_of(name, start, size, method=8):
    """A zip file whose only member is ``start`` and then zeros, ``size`` bytes in all; the zeros take 1/1000."""
    block, packer = bytes(2**24), zlib.compressobj(9, zlib.DEFLATED, -15)
    first = packer.compress(start) + packer.flush(zlib.Z_FULL_FLUSH)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = first + (packer.compress(block) + packer.flush(zlib.Z_FULL_FLUSH)) * (size // len(block)) + packer.flush()
    name, large = name.encode(), 0xFFFFFFFF
    extra = struct.pack("<HHQQ", 1, 16, size, len(body))
    common = struct.pack("<HHHHHLLLHH", 45, 0, method, 0, 33, 0, large, large, len(name), len(extra))
    local = b"PK\3\4" + common + name + extra + body
    entry = b"PK\1\2" + struct.pack("<H", 45) + common + struct.pack("<HHHLL", 0, 0, 0, 0, 0) + name + extra
    return local + entry + b"PK\5\6" + struct.pack("<HHHHLLH", 0, 0, 1, 1, len(entry), len(local), 0)


def array_header(shape, kind="|u1"):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": kind, "fortran_order": False, "shape": shape})
    return file.getvalue()


def picture_of(width, height):
    file = io.BytesIO()
    Image.MAX_IMAGE_PIXELS, before = None, Image.MAX_IMAGE_PIXELS
    Image.new("1", (width, height)).save(file, "PNG")
    Image.MAX_IMAGE_PIXELS = before
    return file.getvalue()


def tensors_of(header, body=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def repeated():
    """A pose that is one number, seen 2^36 times: 4 bytes on disk."""
    file = io.BytesIO()
    torch.save({"c2w": torch.zeros(1).expand(2**36)}, file)
    return file.getvalue()


def bombs():
    """By reader: names of what is wrong, and the content."""
    points = b"ply\nformat ascii 1.0\nelement vertex %d\n" + b"".join(b"property double %c\n" % axis for axis in b"xyz")
    claim = {"dtype": "F32", "shape": [2**31], "data_offsets": [0, 2**33]}
    pair = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    return {
        "npz": {
            "10 GB of zeros, announced": zip_of("frames.npy", array_header((10**10 // 3, 1, 1, 3)), 10**10),
            "10 GB of zeros behind a small clip": zip_of("frames.npy", array_header((2, 4, 4, 3)), 10**10),
            "names that leave the folder": zip_of("../../frames.npy", array_header((2, 4, 4, 3)), 2**25),
        },
        "metadata.pt": {"10 GB of zeros": zip_of("archive/data.pkl", b"", 10**10), "2^36 numbers": repeated()},
        "weights.pth": {"10 GB of zeros": zip_of("archive/data/0", b"", 10**10)},
        "PNG": {"400 megapixels": picture_of(20000, 20000), "99 megapixels": picture_of(11000, 9000)},
        "transforms.json": {
            "brackets": b"[" * 10**7,
            "64 MB": b"[" + b"0," * 2**25 + b"0]",
            "ten million lists": b"[" + b"[]," * 10**7 + b"0]",
            "a million lists": b"[" + b"[]," * 10**6 + b"0]",
            "eight million numbers": b"[" + b"0.5," * (8 * 10**6) + b"0]",
            "a number of 10 MB": b'{"frames": ' + b"9" * 10**7 + b"}",
            "NaN": b'{"frames": [NaN]}',
            "a key twice": b'{"frames": [], "frames": [1]}',
        },
        "PLY (ascii)": {
            "10^12 points": points % 10**12 + b"end_header\n0 0 0\n",
            "two million points": points % (2 * 10**6) + b"end_header\n" + b"0 0 0\n" * (2 * 10**6),
            "4,000 properties": points % 9 + b"property char q\n" * 3000 + b"end_header\n",
        },
        "poses_bounds.npy": {"136 GB": array_header((10**9, 17), "<f8"), "objects": array_header((3, 17), "|O")},
        "weights": {
            "a header of 2^63": struct.pack("<Q", 2**63) + b"{}",
            "a header of 90 MB": tensors_of(b"{" + b" " * 90_000_000 + b"}"),
            "8 GB announced": tensors_of({"a": claim}),
            "overlapping": tensors_of({"a": pair, "b": pair}, bytes(16)),
            "of no known type": tensors_of({"a": pair | {"dtype": "F7"}}, bytes(16)),
            "of another length": tensors_of({"a": pair | {"shape": [5]}}, bytes(16)),
        },
        "images.bin": {"2^63 images": struct.pack("<Q", 2**63) + bytes(1000)},
    }  # fmt: skip


# ---- Measuring.


def memory(key):
    """VmRSS (now) or VmHWM (most since `forget_peak`) of this process, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith(key))


def forget_peak():
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def attempt(read, file):
    """How long a reader took, and what came of it."""
    started = time.process_time()
    try:
        read(file)
        outcome = "used"
    except UserError as refusal:
        outcome = "crashed" if "\n" in str(refusal) else "refused"
    except Exception:
        traceback.print_exc()
        outcome = "crashed"
    return outcome, time.process_time() - started


def measured(read, file, contents):
    counts, longest, most, original = Counter(), 0.0, 0.0, file.read_bytes()
    for content in contents:
        file.write_bytes(content)
        before = forget_peak()
        outcome, seconds = attempt(read, file)
        counts[outcome] += 1
        longest, most = max(longest, seconds), max(most, memory("VmHWM") - before)
    file.write_bytes(original)
    return {**counts, "seconds": round(longest, 3), "grown": round(most, 1)}


def messages(dice, cases):
    """Messages of a secure sum, at every stage, changed at random: refused with a reason, or taken."""
    counts, longest, before = Counter(), 0.0, forget_peak()
    for _ in range(cases):
        stage = dice.choice([Stage.ADVERTISE, Stage.SHARE, Stage.MASKED, Stage.CONSISTENCY, Stage.UNMASK])
        played = play(None, settings_of(4), until=stage)
        message = damaged(dice, bytes(message_of(played, stage, 2)))
        started = time.process_time()
        try:
            counts["used" if played.server.receive(2, message) is None else "refused"] += 1
        except Abandoned:
            counts["refused"] += 1
        longest = max(longest, time.process_time() - started)
    return {**counts, "seconds": round(longest, 3), "grown": round(memory("VmHWM") - before, 1)}


def main(folder, cases):
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    found, explosive = readers(folder), bombs()
    figures = {}
    for name, (file, change, read) in found.items():
        assert attempt(read, file)[0] == "used" or name == "weights.pth", name
        dice, original = random.Random(0), file.read_bytes()
        figures[name] = measured(read, file, (change(dice, original) for _ in range(cases)))
        for what, content in explosive.get(name, {}).items():
            figures[f"{name}: {what}"] = measured(read, file, [content])
    figures["messages of secure sums"] = messages(random.Random(0), cases)
    print(json.dumps(figures))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
