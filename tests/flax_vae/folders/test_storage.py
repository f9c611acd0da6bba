"""The formats of latents for other people's loaders: what they read, and what an interruption leaves."""

import io
import os
import pickle
import shutil
import signal
import subprocess
import sys
import zipfile

import grain
import numpy as np
import pytest

from flax_vae.convert.errors import FileError
from flax_vae.convert.latents import LatentDataset, LatentEntry, ShardContent, read_record, shard_storage
from flax_vae.convert.latents.statistics import ChannelStats
from flax_vae.errors import UserError
from flax_vae.folders.batches import BatchLimits
from tests.flax_vae.folders.test_encode import contents, encode, model, picture

__all__ = ["model"]  # a fixture

GROUPING = BatchLimits(batch_size=2, shard_size=4)
OTHERS = ["arrayrecord", "npz", "pt"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Returns a folder of ten images of two padded sizes and three classes, with two captions."""
    folder, rng = tmp_path_factory.mktemp("source"), np.random.default_rng(0)
    for number in range(10):
        (folder / f"class{number % 3}").mkdir(exist_ok=True)
        picture(rng, 8, (8, 15)[number % 2]).save(folder / f"class{number % 3}" / f"{number}.png")
    for name in ("class0/0", "class1/1"):  # of one shard
        (folder / f"{name}.txt").write_text(f"a picture of {name} ß\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def stored(tmp_path_factory, source, model):
    """Returns the data set of each format, by its name."""
    place = tmp_path_factory.mktemp("stored")
    return {
        storage: encode(
            source, place / storage, model, grouping=GROUPING, store="mean-std", flip=True, call={"storage": storage}
        )
        for storage in ("safetensors", *OTHERS)
    }


def test_labels_and_captions_are_those_of_the_source(ours, stored, source, model, tmp_path):
    assert {name: entry["label"] for (name, _), entry in ours.items()} == {
        f"class{number % 3}/{number}.png": number % 3 for number in range(10)
    }
    assert {name: entry["caption"] for (name, _), entry in ours.items() if entry["caption"]} == {
        "class0/0.png": "a picture of class0/0 ß",
        "class1/1.png": "a picture of class1/1 ß",
    }
    other = tmp_path / "other"
    shutil.copytree(source, other)
    (other / "class1" / "1.txt").write_text("another text")
    with pytest.raises(UserError, match=r"1 changed \(label or caption of class1/1.png\)"):
        encode(other, stored["safetensors"], model, grouping=GROUPING, store="mean-std", flip=True)


def by_place(entries):
    return {(entry["name"], entry["flipped"]): entry for entry in entries}


@pytest.fixture(scope="module")
def ours(stored):
    return by_place(LatentDataset(stored["safetensors"]))


def test_deviations_are_those_of_the_moments(source, ours, model, tmp_path):
    moments = by_place(
        LatentDataset(encode(source, tmp_path / "m", model, grouping=GROUPING, store="moments", flip=True))
    )
    assert len(ours) == 20 and ours.keys() == moments.keys()
    for place, entry in ours.items():
        np.testing.assert_allclose(entry["mean"], moments[place]["mean"], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(entry["std"], np.exp(0.5 * moments[place]["logvar"]), rtol=1e-5)


def test_grain_reads_array_records(stored, ours):
    files = sorted(map(str, stored["arrayrecord"].glob("*.array_record")))
    source = grain.MapDataset.source(grain.sources.ArrayRecordDataSource(files)).shuffle(seed=0).map(read_record)
    entries = by_place(source)
    assert entries.keys() == ours.keys()
    for place, entry in entries.items():
        assert entry.keys() == ours[place].keys()
        for key, value in entry.items():
            np.testing.assert_array_equal(value, ours[place][key])
    with pytest.raises(FileError, match="does not hold a latent"):
        read_record(b"\xc1")


def test_numpy_reads_npz(stored, ours):
    found = {}
    for file in stored["npz"].glob("*.npz"):
        with np.load(file) as arrays:
            singular = {name: name.removesuffix("s") for name in arrays if name not in ("mean", "std", "flipped")}
            columns = {singular.get(name, name): arrays[name] for name in arrays}
            found |= by_place(dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
    assert found.keys() == ours.keys()
    for place, entry in found.items():
        assert entry.keys() == ours[place].keys()
        for key, value in entry.items():
            np.testing.assert_array_equal(value, ours[place][key])


@pytest.mark.torch
def test_the_loader_of_meanflow_reads_files_of_pytorch(stored, ours):
    import torch
    from torch.utils.data import DataLoader, Dataset

    class Latents(Dataset):
        """As in MeanFlow and iMF: all files of a folder, an image and a label in each."""

        def __init__(self, root):
            self.paths = sorted(os.path.join(root, file) for file in os.listdir(root) if file.endswith(".pt"))

        def __len__(self):
            return len(self.paths)

        def __getitem__(self, index):
            data = torch.load(self.paths[index], weights_only=True)
            return data["image"], data["label"]

    expected = sorted(ours.values(), key=lambda entry: (entry["number"], entry["flipped"]))
    found = list(DataLoader(Latents(stored["pt"])))
    assert len(found) == 20
    for (image, label), entry in zip(found, expected, strict=True):
        assert label.dtype == torch.int64 and label.shape == (1,) and label.item() == entry["label"]
        mean, std = np.split(image[0].permute(1, 2, 0).numpy(), 2, axis=-1)
        np.testing.assert_array_equal(mean, entry["mean"])
        np.testing.assert_array_equal(std, entry["std"])


@pytest.mark.torch
def test_loaders_of_pytorch_give_the_same_from_our_shards_and_from_npz(stored):
    from torch.utils.data import ConcatDataset, DataLoader, Dataset

    class Arrays(Dataset):
        """One file of NumPy's arrays."""

        def __init__(self, file):
            with np.load(file) as arrays:
                self.arrays = dict(arrays)

        def __len__(self):
            return len(self.arrays["labels"])

        def __getitem__(self, index):
            mean, std, label, name, flipped = (
                self.arrays[key][index] for key in ("mean", "std", "labels", "names", "flipped")
            )
            return {"mean": mean, "std": std, "label": int(label), "name": str(name), "flipped": bool(flipped)}

    files = sorted(stored["npz"].glob("*.npz"))
    loaders = LatentDataset(stored["safetensors"]), ConcatDataset([Arrays(file) for file in files])
    ours, theirs = (by_place(DataLoader(each, batch_size=None, shuffle=True)) for each in loaders)  # pyright: ignore
    assert len(ours) == 20 and theirs.keys() == ours.keys()
    for place, entry in theirs.items():
        assert entry["label"] == ours[place]["label"]
        assert all(entry[part].equal(ours[place][part]) for part in ("mean", "std"))


@pytest.mark.torch
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_file_of_pytorch_holds_what_pytorch_would_write(dtype):
    import torch

    from flax_vae.convert.latents.torch_files import torch_bytes

    image = np.random.default_rng(0).normal(size=(3, 2, 5)).astype(dtype)
    data = torch_bytes({"image": image, "label": np.array(7, np.int64)})
    read = torch.load(io.BytesIO(data), weights_only=True)
    assert read["label"].item() == 7 and read["image"].dtype == getattr(torch, dtype)
    np.testing.assert_array_equal(read["image"].float().numpy(), image.astype(np.float32))
    theirs = io.BytesIO()
    torch.save(dict(read), theirs)
    numbers = [zipfile.ZipFile(file).read(f"{root}/data/0") for file, root in ((io.BytesIO(data), "latent"),)]
    assert numbers == [zipfile.ZipFile(theirs).read("archive/data/0")]


@pytest.mark.parametrize("storage", OTHERS)
def test_what_is_missing_or_damaged_is_encoded_again(storage, stored, source, model, tmp_path):
    folder = tmp_path / "latents"
    folder.mkdir()
    straight = contents(stored[storage])
    for name, content in straight.items():
        (folder / name).write_bytes(content)
    data = sorted(path for path in folder.iterdir() if path.suffix in (".array_record", ".npz", ".pt"))
    data[0].unlink()
    data[-1].write_bytes(data[-1].read_bytes()[:-1] + b"x")
    (folder / "latents-00001.json").unlink()
    settings = {"store": "mean-std", "flip": True, "call": {"storage": storage}}
    encode(source, folder, model, grouping=GROUPING, **settings)
    assert contents(folder) == straight
    with pytest.raises(UserError, match="was begun otherwise: storage was"):
        encode(source, folder, model, grouping=GROUPING, store="mean-std", flip=True)
    with pytest.raises(FileError, match=f"are stored as {storage}; read them with"):
        LatentDataset(folder)


def test_a_full_disk_is_an_error_of_the_system(tmp_path, monkeypatch):
    class Full:
        def __init__(self, path, options): ...
        def write(self, record): ...
        def close(self):
            raise RuntimeError("write() failed: No space left on device")

    monkeypatch.setattr("flax_vae.convert.latents.array_record._writer", lambda: Full)
    with pytest.raises(OSError, match=r"latents-00000.array_record could not be written: .*No space left on device"):
        shard_storage("arrayrecord").write(tmp_path, 0, shard_content(), "plan")
    assert not list(tmp_path.iterdir())


def test_numpy_has_no_bfloat16(source, model, tmp_path):
    with pytest.raises(ValueError, match="NumPy's files have no bfloat16; store float16 or float32"):
        encode(source, tmp_path / "latents", model, dtype="bfloat16", call={"storage": "npz"})


def shard_content():
    content, rng = ShardContent(ChannelStats.nothing(2)), np.random.default_rng(0)
    entries = [LatentEntry(i, f"{i}.png", 8, 8, False, bytes([i]) * 32, i % 3, f"number {i}") for i in range(4)]
    content.add(entries, {"latent": rng.normal(size=(4, 3, 5, 2)).astype(np.float32)})
    return content


STRUCK = """
import os, pickle, signal, sys
from pathlib import Path
from flax_vae.convert.latents import shard_storage

folder, storage, strike, content = sys.argv[1:]
content = pickle.loads(Path(content).read_bytes())
count = 0

def watch(event, args):
    global count
    if event == "os.rename":
        count += 1
        if count == int(strike):
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(watch)
shard_storage(storage).write(Path(folder), 0, content, "plan")
"""


@pytest.mark.parametrize(("storage", "strike"), [("arrayrecord", 2), ("npz", 1), ("npz", 2), ("pt", 3)])
def test_a_killed_writer_leaves_no_shard(storage, strike, tmp_path):
    written = shard_storage(storage)
    struck, straight = tmp_path / "struck", tmp_path / "straight"
    for folder in (struck, straight):
        folder.mkdir()
    (tmp_path / "content").write_bytes(pickle.dumps(shard_content()))
    command = [sys.executable, "-c", STRUCK, str(struck), storage, str(strike), str(tmp_path / "content")]
    done = subprocess.run(command, capture_output=True, timeout=120, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    with pytest.raises(FileNotFoundError):
        written.notes(struck, 0)
    for folder in (struck, straight):
        written.write(folder, 0, shard_content(), "plan")
    assert contents(struck) == contents(straight)
    assert written.notes(struck, 0).record.entries == 4
    assert written.sources(struck, 0)["2.png"] == "02" * 32
