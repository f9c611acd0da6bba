"""Latents in a bucket: written, interrupted, read and decoded as in a folder."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from flax_vae.convert.errors import FileError
from flax_vae.convert.files import BucketLock, as_path, list_at, read_at, write_at
from flax_vae.convert.latents import LatentDataset
from flax_vae.errors import UserError
from flax_vae.folders.decode import decode_folder
from tests.flax_vae.folders.test_encode import contents, encode, model, weights
from tests.flax_vae.folders.test_storage import GROUPING, OTHERS, source
from tests.packed import pack

__all__ = ["model", "source", "weights"]  # fixtures

SETTINGS = {"grouping": GROUPING, "store": "mean"}


def objects(address):
    return {entry.name: read_at(f"{address}/{entry.name}") for entry in list_at(address, recursive=True)}


@pytest.fixture(scope="module")
def local(tmp_path_factory, source, model):
    return encode(source, tmp_path_factory.mktemp("local") / "latents", model, **SETTINGS)


@pytest.fixture(scope="module")
def remote(bucket, source, model):
    return encode(source, f"{bucket}/latents", model, **SETTINGS)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """Returns the folder of copies."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("FLAX_VAE_CACHE", str(folder))
    return folder / "copies"


def test_objects_equal_the_files_of_a_folder(local, remote, source, model):
    assert objects(remote) == contents(local)
    encode(source, remote, model, **SETTINGS)  # complete: nothing changes
    assert objects(remote) == contents(local)


def test_latents_are_read_from_copies_of_shards(local, remote, cache):
    found, expected = LatentDataset(remote), LatentDataset(local)
    assert len(found) == len(expected) == 10
    assert not cache.exists()
    for ours, theirs in zip(found, expected, strict=True):
        assert ours["name"] == theirs["name"] and ours["label"] == theirs["label"]
        np.testing.assert_array_equal(ours["latent"], theirs["latent"])
    copies = {path.name: path for path in cache.glob("*/*.safetensors")}
    assert sorted(copies) == [record.file for record in found.index.shards]
    first = found.index.shards[0].file
    copies[first].write_bytes(b"damaged")
    assert LatentDataset(remote, verify=True)[0]["name"] == expected[0]["name"]
    assert copies[first].read_bytes() == contents(local)[first]


def test_latents_are_decoded_to_a_bucket(local, remote, bucket, model, tmp_path):
    decode_folder(remote, f"{bucket}/pictures", *model)
    decode_folder(local, tmp_path / "pictures", *model)
    assert objects(f"{bucket}/pictures") == contents(tmp_path / "pictures")
    assert decode_folder(remote, f"{bucket}/pictures", *model).decoded == 0


@pytest.mark.parametrize("storage", ["safetensors", *OTHERS])
def test_what_is_missing_or_damaged_is_encoded_again(storage, bucket, source, model, tmp_path):
    address, call = f"{bucket}/{storage}", {"storage": storage}
    straight = contents(encode(source, tmp_path / "straight", model, call=call, **SETTINGS))
    shards = sorted(name for name in straight if name.startswith("latents-") or name.endswith(".pt"))
    for name, content in straight.items():
        damaged = content[:-1] + b"x" if name == shards[-1] else content
        if name not in ("index.json", "statistics.json", shards[0]):
            write_at(f"{address}/{name}", damaged)
    encode(source, address, model, call=call, **SETTINGS)
    assert objects(address) == straight


def test_a_damaged_data_set_is_refused(local, bucket):
    for name, content in contents(local).items():
        write_at(f"{bucket}/damaged/{name}", content[:-1] if name.startswith("latents-00001") else content)
    with pytest.raises(FileError, match=r"gs://bucket/damaged/latents-00001.safetensors has [\d,]+ bytes, not"):
        LatentDataset(f"{bucket}/damaged")
    with pytest.raises(FileNotFoundError, match="gs://bucket/nothing holds no index.json"):
        LatentDataset(f"{bucket}/nothing")


def test_a_second_process_is_refused(bucket, source, model):
    held = rf"{bucket}/held/.lock-000001 is held by process \d+ on .*; wait for its end"
    with BucketLock(as_path(f"{bucket}/held")), pytest.raises(UserError, match=held):
        encode(source, f"{bucket}/held", model, **SETTINGS)
    with pytest.raises(UserError, match="gs://bucket/held is in a bucket, where --force would mix"):
        encode(source, f"{bucket}/held", model, call={"force": True}, **SETTINGS)


STRUCK = """
import os, signal, sys
from flax_vae.convert import files

strike, *words = sys.argv[1:]
count, write = 0, files.write_at

def watch(place, data):
    global count
    count += ".lock-" not in str(place)
    if count == int(strike):
        os.kill(os.getpid(), signal.SIGKILL)
    write(place, data)

files.write_at = sys.modules[write.__module__].write_at = watch
from flax_vae.cli.main import main
sys.exit(main(words))
"""


@pytest.mark.slow
def test_encoding_a_tar_to_a_bucket_killed_five_times_gives_the_bytes_of_a_local_one(source, weights, bucket, tmp_path):
    environment = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "JAX_NUM_CPU_DEVICES": "1"}
    tar = pack(source, "tar", tmp_path)
    write_at(f"{bucket}/images.tar", Path(tar).read_bytes())

    def start(destination, strike, images=f"{bucket}/images.tar"):
        words = ["encode", images, destination, "--model", weights, "--batch-size", 2, "--shard-size", 2, "--flip"]
        command = [sys.executable, "-c", STRUCK, strike, *words]
        return subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True, timeout=300)

    address, shards = f"{bucket}/killed", []
    # Written are the list of images, the plan, then shards.
    for strike in (2, 3, 2, 2, 4):
        assert start(address, strike).returncode == -signal.SIGKILL
        names = [entry.name for entry in list_at(address)]
        assert "index.json" not in names
        shards.append(sum(name.startswith("latents-") for name in names))
    assert shards == [0, 0, 1, 2, 5]
    ended = start(address, 0)
    assert ended.returncode == 0, ended.stderr
    assert "20 latents in gs://bucket/killed" in ended.stdout
    assert start(tmp_path / "latents", 0, tar).returncode == 0
    assert objects(address) == contents(tmp_path / "latents")
