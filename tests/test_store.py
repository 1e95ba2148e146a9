"""Files are written whole or not at all and read with care; and the whole source keeps to that."""

import ast
import os
import stat
from pathlib import Path

import pytest
import torch

import fedfields
from fedfields.cli import main
from fedfields.errors import UserError, said
from fedfields.perceptual import load_lpips
from fedfields.scenes.meganerf import read_meganerf
from fedfields.store import (
    MAX_DEPTH,
    is_unfinished,
    parse_json,
    read_file,
    read_pt,
    read_tensors,
    sweep,
    write_tensors,
    write_text,
    writing,
)
from tests.scenes.test_captures import write_meganerf

SOURCE = Path(fedfields.__file__).parent


def test_what_fails_half_way_leaves_the_old_file(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(ZeroDivisionError), writing(tmp_path / "a.txt") as temporary:
        temporary.write_text("ne")
        raise ZeroDivisionError
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.txt", "old")]


def test_a_sweep_takes_what_is_unfinished_and_nothing_else(tmp_path):
    write_text(tmp_path / "a.txt", "whole")
    with writing(tmp_path / "b.txt") as temporary:
        assert is_unfinished(temporary) and not is_unfinished(tmp_path / "a.txt")
        sweep(tmp_path)
        assert not temporary.exists()
        temporary.touch()  # For the end of the block.
    assert {path.name for path in tmp_path.iterdir()} == {"a.txt", "b.txt"}
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o644


def test_tensors_come_back_in_their_order_with_all_their_bits(tmp_path):
    given = {
        "z": torch.tensor([float("nan"), -0.0, 1e-45]),
        "a": torch.zeros(0, 3),
        "m": torch.tensor(7),
        "b": torch.tensor([True, False]),
        "h": torch.arange(6).reshape(2, 3).T.to(torch.bfloat16),
    }
    write_tensors(tmp_path / "t.safetensors", given, {"round": 3})
    found, about = read_tensors(tmp_path / "t.safetensors")
    assert list(found) == list(given) and about == {"round": 3}
    for key, leaf in given.items():
        assert found[key].dtype == leaf.dtype and found[key].shape == leaf.shape
        same = [one.contiguous().reshape(-1).view(torch.uint8) for one in (found[key], leaf)]
        assert torch.equal(*same), key
    first = (tmp_path / "t.safetensors").read_bytes()
    write_tensors(tmp_path / "t.safetensors", given, {"round": 3})
    assert (tmp_path / "t.safetensors").read_bytes() == first


def test_what_is_no_regular_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="no regular file"):
        read_file(tmp_path / "pipe", 10)
    for read in (read_tensors, read_pt):
        with pytest.raises(ValueError, match="no such file"):
            read(tmp_path / "pipe")
    (tmp_path / "long").write_bytes(bytes(11))
    with pytest.raises(ValueError, match="larger than 10 bytes"):
        read_file(tmp_path / "long", 10)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), "nested deeper than 64"),
        ("[" * 500 + "]" * 500, "nested deeper than 64"),
        ('{"a": ' * 10**5, "nested deeper than 64"),
        ('{"a": 1, "b": 2, "a": 3}', "the key 'a' is there twice"),
        ("[" + "[]," * 2**20 + "1]", "more than 1,048,576 lists and objects"),
        (b"\xff\xfe", "utf-8"),
        ("1" * 5000, "digits"),
        ("", "Expecting value"),
    ],
)
def test_json_that_is_refused(text, words):
    with pytest.raises(ValueError, match=words):
        parse_json(text)


def test_json_that_is_read():
    assert parse_json(b'\xef\xbb\xbf{"a": [1.5, null, "\xc3\xa4"]}') == {"a": [1.5, None, "ä"]}
    assert parse_json("[" * MAX_DEPTH + "]" * MAX_DEPTH)


# ---- Nothing is unpickled.


class Evil:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_of_weights_that_would_run_a_command_is_one_line(tmp_path, capsys, legacy):
    """As weights for LPIPS, as metadata of a capture, and as the weights of a film."""
    target, options = tmp_path / "harm", {"_use_new_zipfile_serialization": not legacy}
    torch.save({"features.0.weight": Evil(target)}, tmp_path / "evil.pth", **options)
    with pytest.raises(UserError, match="is no file of weights that can be read safely") as refusal:
        load_lpips(tmp_path / "evil.pth")
    assert "\n" not in str(refusal.value)
    capture = write_meganerf(tmp_path / "mega")
    torch.save({"c2w": Evil(target)}, capture / "train" / "metadata" / "000002.pt", **options)
    with pytest.raises(UserError, match="is no file of tensors that can be read safely"):
        read_meganerf(capture)
    words = ["run", "nerf", "--data", str(capture), "--lpips", str(tmp_path / "evil.pth"), "--out", str(tmp_path / "o")]
    with pytest.raises(SystemExit) as stop:
        main(words)
    said_then = capsys.readouterr().err
    assert stop.value.code == 2 and said_then.count("\n") == 1 and "read safely" in said_then
    assert not target.exists()
    torch.load(tmp_path / "evil.pth", weights_only=False)  # The file would do harm.
    assert target.exists()


UNPICKLERS = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml", "tarfile"}
RUNNERS = {"eval", "exec", "compile", "__import__", "extract", "extractall", "unpack_archive", "read_pickle"}


def calls(tree):
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def sources():
    """Every module's name and syntax tree."""
    found = {str(path.relative_to(SOURCE)): ast.parse(path.read_text()) for path in sorted(SOURCE.rglob("*.py"))}
    assert len(found) > 80
    return found


def test_no_source_unpickles_or_runs_what_it_reads():
    """Worker processes of one run are sent jobs by the standard library; what comes from outside is never unpickled."""
    zips, loads = set(), []
    for name, tree in sources().items():
        modules = {module.split(".")[0] for module in imports(tree)}
        assert not modules & UNPICKLERS, name
        zips |= {name} if "zipfile" in modules else set()
        for called, node in calls(tree):
            last = called.rsplit(".", 1)[-1]
            options = {key.arg: ast.unparse(key.value) for key in node.keywords}
            if last in RUNNERS:
                assert called in ("re.compile", "job.extract"), (name, called)
            if called in ("np.load", "numpy.load"):
                assert options["allow_pickle"] == "False", name
            if called.endswith(".read_array"):
                assert options["allow_pickle"] == "False", name
            if called == "torch.load":
                loads.append((name, options["weights_only"]))
            assert called != "torch.save", name
    assert loads == [("store.py", "True")]
    assert zips == {"store.py", "scenes/clips.py", "datasets/tables.py"}


WRITERS = {"write_text", "write_bytes", "save", "savez", "savez_compressed", "save_file", "tofile", "dump", "savetxt",
           "imwrite", "savefig", "export_PLY", "write_binary", "write", "open"}  # fmt: skip
READS = {"Image.open", "av.open", "archive.open", "self.pycolmap.Database.open", "experiment.data.open", "data.open"}


def unsafe_writes(node, guarded=False):
    """Calls that write, outside of ``with writing(...)``, as text."""
    if isinstance(node, ast.With):
        guarded |= any(ast.unparse(item.context_expr).startswith("writing(") for item in node.items)
    if isinstance(node, ast.Call) and not guarded:
        called = ast.unparse(node.func)
        reads = called in READS or (called == "path.open" and [ast.unparse(one) for one in node.args] == ["'rb'"])
        if called.rsplit(".", 1)[-1] in WRITERS and not reads:
            yield called
    for child in ast.iter_child_nodes(node):
        yield from unsafe_writes(child, guarded)


def test_every_file_is_written_through_the_store():
    """The exceptions: methods and functions that end there, and a capture that is made in a folder of its own."""
    found = {(name, called) for name, tree in sources().items() if name != "store.py" for called in unsafe_writes(tree)}
    through_the_store = {
        ("report/__init__.py", "write_text"),
        ("report/figures.py", "write_text"),
        ("mapping/store.py", "write_text"),
        ("runtime/run.py", "write_text"),
        ("runtime/run.py", "save"),
        ("runtime/tune.py", "write_text"),
        ("runtime/join.py", "program.log.write"),
        ("runtime/flower.py", "desk.secret.save"),
        ("runtime/remote.py", "self.frame.save"),
        ("scenes/tour.py", "frame.save"),
        ("scenes/tour.py", "tour_of([photo.pose for photo in photos], [photo.camera for photo in photos]).save"),
    }
    in_a_folder_of_its_own = {
        ("scenes/copies.py", "picture.save"),
        ("scenes/motion.py", "model.write_binary"),
        ("scenes/motion.py", "model.export_PLY"),
        ("mapping/commits.py", "path.write_bytes"),
    }
    locks = {("runtime/join.py", "path.open"), ("mapping/commits.py", "path.open")}
    assert found == through_the_store | in_a_folder_of_its_own | locks


# ---- What is said of errors.


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("out of memory"), "RuntimeError: out of memory"),
        (OSError(2, "No such file", "/home/zoe/photos/me.jpg"), "FileNotFoundError: ... No such file: ..."),
        (ValueError("cannot read C:\\Users\\zoe\\me.jpg, sorry"), "ValueError: cannot read ... sorry"),
        (KeyError("secret name"), "KeyError: ..."),
        (ValueError("colours tensor([[0.25,\n 0.5]]) are odd"), "ValueError: colours tensor(...]) are odd"),
        (ValueError("x" * 9999), "ValueError: " + "x" * 200),
    ],
)
def test_errors_of_clients_are_scrubbed(error, words):
    assert said(error) == words
