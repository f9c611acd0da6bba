"""Tests of encoding folders of images: stored values, interruptions, refused inputs."""

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from operator import itemgetter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from flax_vae import AutoEncoder, init_params, save_pretrained
from flax_vae.cli import main as cli
from flax_vae.convert import PRESETS
from flax_vae.convert.latents.dataset import LatentDataset
from flax_vae.convert.latents.shard import write_shard
from flax_vae.errors import UserError
from flax_vae.folders.batch_encoder import latent_noise
from flax_vae.folders.batches import BatchLimits, ImageEntry, plan_shards
from flax_vae.folders.data_set import OURS, SIGNS
from flax_vae.folders.encode import encode_folder, encoding_of
from flax_vae.folders.output_folder import replaced, require_ours
from flax_vae.folders.pipeline import BusyTime
from flax_vae.images.read import read_image
from flax_vae.images.scan import scan_images
from flax_vae.images.sizes import pad_to_factor, resize_image, to_float
from flax_vae.images.sources.open import open_images

SMALL = replace(PRESETS["tiny"], ch=32, ch_mult=(1, 1), z_channels=4, scale_factor=0.5, shift_factor=0.25)
SIZES = [(12, 16), (11, 15), (8, 8), (7, 8), (1, 1)]  # padded: three
GROUPING = BatchLimits(batch_size=4, shard_size=8)


def picture(rng, height, width):
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Returns a folder with 40 images of mixed sizes and formats, some in a sub-folder, one with an EXIF rotation."""
    folder, rng = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    (folder / "sub").mkdir()
    for number in range(38):
        height, width = SIZES[number % len(SIZES)]
        suffix = "jpg" if number % 3 else "png"
        picture(rng, height, width).save(folder / ("sub" if number % 5 == 0 else "") / f"{number:02}.{suffix}")
    picture(rng, 12, 16).convert("L").save(folder / "grey.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(rng, 16, 12).save(folder / "turned.jpg", exif=exif)
    return folder


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """Returns a folder with a single image."""
    folder = tmp_path_factory.mktemp("one")
    picture(np.random.default_rng(1), 8, 8).save(folder / "a.png")
    return folder


@pytest.fixture(scope="module")
def model():
    """Returns a model and random parameters."""
    model = AutoEncoder(SMALL, dtype=jnp.float32)
    return model, init_params(model, jax.random.key(0))


@pytest.fixture(scope="module")
def weights(tmp_path_factory, model):
    """Returns the folder of the model."""
    folder = tmp_path_factory.mktemp("model") / "model"
    save_pretrained(folder, *model)
    return folder


@pytest.fixture(scope="module")
def straight(tmp_path_factory, photographs, model):
    """Returns a data set that was encoded without interruption."""
    return encode(photographs, tmp_path_factory.mktemp("straight") / "latents", model)


def encode(source, destination, model, *, grouping=GROUPING, call=None, **settings):
    settings = {"store": "mean", "dtype": "float32"} | settings
    encode_folder(source, destination, *model, encoding_of(*model, **settings), grouping, **(call or {}))
    return destination


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def entries_of(folder):
    found = scan_images(open_images(str(folder)))
    return [ImageEntry(index, found.source.name(index), *size) for index, size in found.sizes.items()]


def padded(folder, pictures):
    return to_float(np.stack([pad_to_factor(read_image(folder / one.name), SMALL.factor) for one in pictures]))


def filled(images, full):
    return np.concatenate([images, np.repeat(images[:1], full - len(images), axis=0)])


def test_batches_of_one_size_are_equally_large():
    rng = np.random.default_rng(0)
    pictures = [ImageEntry(n, str(n), *map(int, size)) for n, size in enumerate(rng.integers(1, 60, (300, 2)))]
    grouping = BatchLimits(batch_size=5, max_pixels=4000, shard_size=20)
    shards = plan_shards(pictures, 16, grouping)
    batches = [batch for shard in shards for batch in shard.batches]
    assert sorted(p.number for batch in batches for p in batch.pictures) == list(range(300))
    assert [shard.number for shard in shards] == list(range(len(shards)))
    assert max(shard.images for shard in shards) <= 20
    areas = [batch.height * batch.width for batch in batches]
    assert areas == sorted(areas, reverse=True)
    for batch in batches:
        assert batch.height % 16 == batch.width % 16 == 0
        assert all(0 <= batch.height - p.height < 16 and 0 <= batch.width - p.width < 16 for p in batch.pictures)
        assert batch.compiled_size - 1 <= len(batch.pictures) <= batch.compiled_size <= 5
        assert batch.compiled_size == 1 or batch.compiled_size * batch.height * batch.width <= 4000
    assert len({(batch.height, batch.width) for batch in batches}) == len(
        {(batch.height, batch.width, batch.compiled_size) for batch in batches}
    )
    assert plan_shards(pictures, 16, grouping) == shards


def direct(source, model, devices, **call):
    """Yields each image with the result of a plain jitted call on the batch of one device."""
    run = jax.jit(partial(model[0].apply, **call))
    for batch in (
        batch for shard in plan_shards(entries_of(source), SMALL.factor, GROUPING) for batch in shard.batches
    ):
        full = -(-batch.compiled_size // devices)
        images = filled(padded(source, batch.pictures), full * devices)
        parts = [run({"params": model[1]}, part) for part in np.split(images, devices)]
        for row, one in enumerate(batch.pictures):
            yield one, jax.tree.map(itemgetter(row % full), parts[row // full])


def test_moments_equal_the_direct_call_bit_for_bit(photographs, tmp_path, model):
    folder = encode(photographs, tmp_path / "latents", model, store="moments", call={"devices": jax.devices()[:1]})
    latents = LatentDataset(folder)
    assert len(latents) == 40 and not latents.index.encoding.scaled
    for entry, (one, expected) in zip(latents, direct(photographs, model, 1, method="posterior"), strict=True):
        np.testing.assert_array_equal(entry["mean"], expected.mean)
        np.testing.assert_array_equal(entry["logvar"], expected.logvar)
        assert (entry["name"], entry["height"], entry["width"]) == (one.name, one.height, one.width)
        assert entry["number"] == one.number and entry["flipped"] is False
    (turned,) = [entry for entry in latents if entry["name"] == "turned.jpg"]
    assert (turned["height"], turned["width"]) == (12, 16)


def test_means_equal_the_direct_call_bit_for_bit_on_two_devices(straight, photographs, model):
    latents = LatentDataset(straight)
    assert latents.index.encoding.scaled
    call = {"method": "encode", "sample": False}
    for entry, (_, expected) in zip(latents, direct(photographs, model, 2, **call), strict=True):
        np.testing.assert_array_equal(entry["latent"], expected)


def test_samples_depend_only_on_seed_and_image(tmp_path, model):
    source, rng = tmp_path / "source", np.random.default_rng(2)
    source.mkdir()
    for name in "ab":
        picture(rng, 8, 8).save(source / f"{name}.png")
    together, apart = (
        LatentDataset(encode(source, tmp_path / str(size), model, store="sample", seed=3, flip=True, grouping=grouping))
        for size, grouping in ((4, BatchLimits(4)), (1, BatchLimits(1, shard_size=1)))
    )
    posterior = jax.jit(partial(model[0].apply, method="posterior"))
    images = padded(source, entries_of(source))
    views = np.stack([images, images[:, :, ::-1]], axis=1).reshape(4, 8, 8, 3)  # each image, then its mirror image
    found, noise = posterior({"params": model[1]}, views), latent_noise(3, np.arange(4, dtype=np.uint32), (4, 4, 4))
    expected = 0.5 * (found.mean + found.std * noise - 0.25)
    for latents in (together, apart):
        assert len(latents) == 4
        for entry in latents:
            np.testing.assert_allclose(
                entry["latent"], expected[2 * entry["number"] + entry["flipped"]], rtol=1e-4, atol=1e-4
            )
    assert len(np.unique(noise)) > 250  # no two alike
    assert not np.allclose(noise, latent_noise(4, np.arange(4, dtype=np.uint32), (4, 4, 4)))


def test_mirror_image_is_the_second_entry(one, tmp_path, model):
    mirrored = tmp_path / "mirrored"
    mirrored.mkdir()
    Image.open(one / "a.png").transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(mirrored / "a.png")
    both = LatentDataset(encode(one, tmp_path / "both", model, flip=True))
    alone = LatentDataset(encode(mirrored, tmp_path / "alone", model))
    assert len(both) == 2 and [both[i]["flipped"] for i in range(2)] == [False, True]
    np.testing.assert_array_equal(both[1]["latent"], alone[0]["latent"])
    assert not np.array_equal(both[0]["latent"], both[1]["latent"])


def test_resized_crops_are_encoded_as_if_they_were_the_files(tmp_path, model, weights, capsys):
    source, cropped = tmp_path / "source", tmp_path / "cropped"
    for folder in (source, cropped):
        folder.mkdir()
    picture(np.random.default_rng(3), 37, 50).save(source / "a.png")
    Image.fromarray(resize_image(read_image(source / "a.png"), 16)).save(cropped / "a.png")
    words = ["encode", str(source), str(tmp_path / "resized"), "--model", str(weights), "--flip", "--crop", "center"]
    assert cli.main(words) == 1 and "--crop center needs --resize" in capsys.readouterr().err
    assert cli.main([*words, "--resize", "16"]) == 0
    found = LatentDataset(tmp_path / "resized")
    expected = LatentDataset(encode(cropped, tmp_path / "expected", model, flip=True))
    assert (found.index.encoding.resize, found.index.encoding.crop) == (16, "center")
    assert len(found) == 2  # the second is the mirror image of the crop, whose margins are not equally wide
    for entry, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(entry.pop("latent"), other.pop("latent"))
        assert entry == other
    assert cli.main([*words[:-1], "none", "--resize", "16"]) == 1
    assert "encoding.crop was 'center' and is 'none'" in capsys.readouterr().err


def test_a_large_image_is_split_over_devices(one, tmp_path, model):
    spread, whole = (
        LatentDataset(encode(one, tmp_path / str(pixels), model, grouping=BatchLimits(max_pixels=pixels)))[0]["latent"]
        for pixels in (50, 100)
    )
    np.testing.assert_allclose(spread, whole, rtol=1e-4, atol=1e-4)


STRUCK = """
import os, signal, sys
from pathlib import Path

folder, strike, *words = sys.argv[1:]
count = 0

def watch(event, args):
    global count
    if event == "os.rename" and str(args[0]).startswith(folder):
        count += 1
        if count == int(strike):
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(watch)
from flax_vae.cli.main import main
sys.exit(main(words))
"""


def test_interrupted_encoding_gives_equal_bytes(photographs, straight, weights, tmp_path):
    folder = tmp_path / "latents"
    words = ["encode", photographs, folder, "--model", weights, "--batch-size", "4", "--shard-size", "8"]
    # As this process computes: see tests/conftest.py.
    environment = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "JAX_NUM_CPU_DEVICES": "2"}

    def start(strike):
        command = [sys.executable, "-c", STRUCK, folder, strike, *words]
        return subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True, timeout=120)

    # Renamed are the list of images, the plan, then shards.
    for strike, shards in ((4, 1), (3, 3)):
        assert start(strike).returncode == -signal.SIGKILL
        assert len(list(folder.glob("latents-*"))) == shards
        assert len(list(folder.glob(".*.partial"))) == 1
    ended = start(0)
    assert ended.returncode == 0, ended.stderr
    assert "40 latents in" in ended.stdout
    assert contents(folder) == contents(straight)


def test_two_processes_give_an_equal_data_set(photographs, straight, tmp_path, model):
    encoding = encoding_of(*model, store="mean", dtype="float32")
    run = partial(encode_folder, photographs, tmp_path / "latents", *model, encoding, GROUPING, processes=2)
    first = run(process=1)
    assert first.missing == first.shards == 3 and not (tmp_path / "latents" / "index.json").exists()
    assert run(process=0).missing == 0
    assert contents(tmp_path / "latents") == contents(straight)
    with pytest.raises(UserError, match="process=2 of processes=2 must be from 0 to 1"):
        run(process=2)
    with pytest.raises(UserError, match="needs a single process, not 2"):
        run(process=0, force=True)


def test_a_complete_data_set_is_kept_and_other_settings_refused(one, tmp_path, model, capsys):
    source = tmp_path / "source"
    shutil.copytree(one, source)
    folder = encode(source, tmp_path / "latents", model)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    encode(source, folder, model)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before

    other = (model[0], jax.tree.map(lambda leaf: leaf + 1, model[1]))
    for change, message in (
        (partial(encode, source, folder, other), "encoding.encoder_sha256 was"),
        (partial(encode, source, folder, model, flip=True), "encoding.flip was False and is True"),
        (partial(encode, source, folder, model, grouping=BatchLimits(7)), "grouping.batch_size was 4 and is 7"),
    ):
        with pytest.raises(UserError, match=message):
            change()
    shutil.copy(source / "a.png", source / "b.png")
    with pytest.raises(UserError, match=r"1 added \(b.png\); encode the new ones too with --append"):
        encode(source, folder, model)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    encode(source, folder, model, call={"force": True})
    assert len(LatentDataset(folder)) == 2

    complete = contents(folder)
    (folder / "latents-00000.safetensors").write_bytes(b"cut short")
    encode(source, folder, model)
    assert contents(folder) == complete

    (folder / "mine.txt").touch()
    with pytest.raises(UserError, match=r"something else \(mine.txt\) and is never replaced"):
        encode(source, folder, model, call={"force": True})
    with pytest.raises(UserError, match="holds something else"):
        encode(source, source, model)
    with pytest.raises(UserError, match="is a file"):
        encode(source, source / "a.png", model)
    with pytest.raises(UserError, match=r"whose folders are the classes of its images; choose a folder outside"):
        encode(source, source / "latents", model)
    assert not (source / "latents").exists()


def invert(path):
    """Replaces an image by another of equal name, size and format."""
    Image.fromarray(255 - np.asarray(Image.open(path).convert("RGB"))).save(path)


def test_an_edited_image_is_detected(tmp_path, model):
    source, rng = tmp_path / "source", np.random.default_rng(0)
    source.mkdir()
    for name in "abc":
        picture(rng, 8, 8).save(source / f"{name}.png")
    call = {"grouping": BatchLimits(shard_size=1)}
    folder = encode(source, tmp_path / "latents", model, **call)
    before = contents(folder)
    whole = (source / "b.png").read_bytes()
    invert(source / "b.png")
    with pytest.raises(UserError, match=r"1 images in .*source changed since they were encoded \(b.png\); restore"):
        encode(source, folder, model, **call)
    assert contents(folder) == before
    (folder / "latents-00002.safetensors").unlink()  # a start that was killed: what is there would be mixed with new
    (folder / "index.json").unlink()
    with pytest.raises(UserError, match=r"changed since they were encoded \(b.png\)"):
        encode(source, folder, model, **call)
    (source / "b.png").write_bytes(whole)
    assert contents(encode(source, folder, model, **call)) == before
    picture(rng, 8, 6).save(source / "b.png")
    (source / "c.png").unlink()
    with pytest.raises(UserError, match=r"1 removed \(c.png\), 1 changed \(b.png 8 x 8, now 8 x 6\); restore"):
        encode(source, folder, model, **call)


def test_damaged_shards_are_encoded_again_and_reported(tmp_path, model, weights, capsys):
    source, rng = tmp_path / "source", np.random.default_rng(0)
    source.mkdir()
    for name in "ab":
        picture(rng, 8, 8).save(source / f"{name}.png")
    words = ["encode", source, tmp_path / "latents", "--model", weights, "--shard-size", "1"]
    assert cli.main([*map(str, words)]) == 0
    before = contents(tmp_path / "latents")
    first, second = (tmp_path / "latents" / f"latents-0000{number}.safetensors" for number in range(2))
    for damage in (first.read_bytes()[:-9] + bytes(9), second.read_bytes()):
        first.write_bytes(damage)
        capsys.readouterr()
        assert cli.main([*map(str, words)]) == 0
        assert "1 shards were damaged and were encoded again: latents-00000.safetensors" in capsys.readouterr().out
        assert contents(tmp_path / "latents") == before


def test_appended_images_leave_existing_shards_unchanged(tmp_path, model, weights):
    source, rng = tmp_path / "source", np.random.default_rng(0)
    source.mkdir()
    for name in "bdf":
        picture(rng, 8, 8).save(source / f"{name}.png")
    call = {"grouping": BatchLimits(shard_size=2), "flip": True, "store": "sample", "seed": 5}
    folder = encode(source, tmp_path / "latents", model, **call)
    earlier, entries = contents(folder), list(LatentDataset(folder))
    for name in "aceg":
        picture(rng, 8, 8).save(source / f"{name}.png")
    with pytest.raises(
        UserError, match=r"4 added \(a.png, c.png, e.png, g.png\); encode the new ones too with --append"
    ):
        encode(source, folder, model, **call)
    assert contents(folder) == earlier
    shutil.copytree(folder, tmp_path / "interrupted")

    encode(source, folder, model, **call, call={"append": True})
    now = contents(folder)
    shards = [name for name in earlier if name.startswith("latents-")]
    assert len(shards) == 2 and {name: now[name] for name in shards} == {name: earlier[name] for name in shards}
    latents = LatentDataset(folder, verify=True)
    assert len(latents) == 14 and latents.index.images == 7
    for found, expected in zip(latents, entries, strict=False):
        np.testing.assert_array_equal(found["latent"], expected["latent"])
    assert sorted((e["number"], e["name"]) for e in latents if not e["flipped"]) == [
        *((n, f"{name}.png") for n, name in enumerate("bdfaceg"))
    ]
    everything = np.concatenate([entry["latent"].reshape(-1, 4) for entry in latents]).astype(np.float64)
    np.testing.assert_allclose(latents.statistics.channel_std, everything.std(0), rtol=1e-9)

    # Killed between the new shards: until the end the earlier data set can be read; then it is the same to the bit.
    other = tmp_path / "interrupted"
    with pytest.MonkeyPatch.context() as patch:
        written = []

        def write(folder, number, *rest):
            if written:
                raise OSError(28, "No space left on device")
            written.append(write_shard(folder, number, *rest))

        patch.setattr("flax_vae.convert.latents.storage.write_shard", write)
        with pytest.raises(OSError, match="No space"):
            encode(source, other, model, **call, call={"append": True})
    assert len(list(other.glob("latents-*"))) == 3 and len(LatentDataset(other)) == 6
    encode(source, other, model, **call)  # --append need not be said again
    assert contents(other) == now

    invert(source / "b.png")
    invert(source / "c.png")
    with pytest.raises(UserError, match=r"2 images in .* changed since they were encoded \(b.png, c.png\)"):
        encode(source, folder, model, **call, call={"append": True})
    (source / "d.png").unlink()
    with pytest.raises(UserError, match=r"1 removed \(d.png\)"):
        encode(source, folder, model, **call, call={"append": True})
    assert contents(folder) == now


def test_force_keeps_the_old_data_set_until_the_new_one_is_complete(tmp_path, model):
    source, rng = tmp_path / "source", np.random.default_rng(0)
    source.mkdir()
    for name in "ab":
        picture(rng, 8, 8).save(source / f"{name}.png")
    call = {"grouping": BatchLimits(shard_size=1)}
    folder, straight = tmp_path / "latents", tmp_path / "straight"
    folder.mkdir(mode=0o750)
    old = contents(encode(source, folder, model, **call))
    (folder / "index.json").chmod(0o600)
    new = contents(encode(source, straight, model, flip=True, **call))

    def stop_at(count):
        def write(*args):
            if len(list((tmp_path / ".latents.forced").glob("latents-*"))) == count:
                raise OSError(28, "No space left on device")
            write_shard(*args)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("flax_vae.convert.latents.storage.write_shard", write)
            with pytest.raises(OSError, match="No space"):
                encode(source, folder, model, flip=True, **call, call={"force": True})
        assert contents(folder) == old and list(LatentDataset(folder, verify=True))

    stop_at(1)
    encoding = encoding_of(*model, store="mean", dtype="float32", flip=True)
    report = encode_folder(source, folder, *model, encoding, call["grouping"], force=True)
    assert report.images == 1  # it goes on
    assert contents(folder) == new and not (tmp_path / ".latents.forced").exists()
    assert folder.stat().st_mode & 0o777 == 0o750 and (folder / "index.json").stat().st_mode & 0o777 == 0o600

    old = new
    stop_at(1)
    invert(source / "a.png")  # what was encoded so far is no use any more, and neither are other settings
    encode(source, folder, model, **call, call={"force": True})
    assert contents(folder) == contents(encode(source, tmp_path / "again", model, **call))
    (tmp_path / ".latents.forced").mkdir()
    encode(source, folder, model, **call)
    assert not (tmp_path / ".latents.forced").exists()
    with pytest.raises(UserError, match=r"--append.*--force.*pass one"):
        encode(source, folder, model, call={"force": True, "append": True})


def test_a_second_writer_is_refused(one, tmp_path, model):
    folder = tmp_path / "latents"
    folder.mkdir()
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="is being written by another process"):
            encode(one, folder, model)
    finally:
        os.close(descriptor)
    assert not list(folder.iterdir())


def test_damaged_images_are_refused_or_skipped_and_listed(one, tmp_path, model):
    source = tmp_path / "source"
    shutil.copytree(one, source)
    (source / "empty.png").touch()  # seen in its header
    whole = (source / "a.png").read_bytes()
    (source / "cut.png").write_bytes(whole[: len(whole) // 2])  # seen in its pixels
    shutil.copy(source / "a.png", source / "z.png")
    folder = tmp_path / "latents"
    with pytest.raises(UserError, match="^empty.png is not an image that Pillow can read"):
        encode(source, folder, model)
    with pytest.raises(UserError, match="^cut.png cannot be decoded .* with --skip-bad 2 the others"):
        encode(source, folder, model, call={"skip_bad": 1})
    shutil.rmtree(folder)
    encode(source, folder, model, grouping=BatchLimits(shard_size=1), call={"skip_bad": 2})  # a shard of nothing, too
    latents = LatentDataset(folder)
    assert [latents[i]["name"] for i in range(len(latents))] == ["a.png", "z.png"]
    assert (latents.index.images, latents.index.skipped) == (2, 2)
    skipped = [json.loads(line) for line in (folder / "skipped.jsonl").read_text().splitlines()]
    assert [row["name"] for row in skipped] == ["cut.png", "empty.png"]
    np.testing.assert_array_equal(latents[0]["latent"], latents[1]["latent"])


def test_a_png_with_orientation_after_its_pixels_is_refused(tmp_path, model):
    import zlib

    picture(np.random.default_rng(0), 4, 8).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    exif = Image.Exif()
    exif[0x0112] = 6
    chunk = b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = (len(chunk) - 4).to_bytes(4) + chunk + zlib.crc32(chunk).to_bytes(4)
    (tmp_path / "a.png").write_bytes(content[:-12] + chunk + content[-12:])
    with pytest.raises(UserError, match="a.png is 8 x 4 pixels and was 4 x 8 by its header"):
        encode(tmp_path, tmp_path.with_name("latents"), model)


def test_latents_that_are_not_finite_are_refused(one, tmp_path, model):
    broken = (model[0], jax.tree.map(lambda leaf: leaf * jnp.nan, model[1]))
    with pytest.raises(UserError, match="the latent of a.png is not finite in float32"):
        encode(one, tmp_path / "latents", broken)
    assert not list((tmp_path / "latents").glob("latents-*"))


def test_half_precision_latents_are_rounded_once(one, tmp_path, model):
    folders = [encode(one, tmp_path / dtype, model, dtype=dtype) for dtype in ("float32", "bfloat16")]
    whole, half = (LatentDataset(folder, dtype=None) for folder in folders)
    np.testing.assert_array_equal(half[0]["latent"], whole[0]["latent"].astype("bfloat16"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"multiple": 3}, "multiple=3 must be a multiple of 2"), ({"time": 0.5}, "time=0.5 is given")],
)
def test_settings_that_do_not_match_the_model_are_refused(settings, message, one, tmp_path, model):
    with pytest.raises(UserError, match=message):
        encode(one, tmp_path / "latents", model, **settings)


def test_encode_command_prints_a_summary(one, weights, tmp_path, capsys):
    words = ["encode", str(one), str(tmp_path / "latents"), "--model", str(weights), "--dtype", "bfloat16"]
    assert cli.main(words) == 0
    out, err = capsys.readouterr()
    first, second, third = out.splitlines()
    assert err == "1 size of images, padded to multiples of 2, is compiled\n"
    numbers = re.fullmatch(
        r"1 images in ([\d.]+) s, \S+ images/s; compiling took ([\d.]+) s, and the devices computed for ([\d.]+)% .*",
        first,
    )
    assert numbers is not None, first
    seconds, compiling, share = map(float, numbers.groups())
    assert share / 100 * seconds < compiling <= seconds  # a single image of 8 x 8 pixels
    assert second == "1 image found: 1 encoded"
    assert third == f"1 latents in {tmp_path / 'latents'}"
    assert cli.main(words) == 0
    found, nothing = capsys.readouterr().out.splitlines()
    assert (found, nothing) == (
        "1 image found: 1 encoded",
        f"already complete; 1 latents in {tmp_path / 'latents'}",
    )
    assert LatentDataset(tmp_path / "latents").index.encoding.compute_dtype == "bfloat16"


def test_computing_and_compiling_are_measured_apart():
    busy_time = BusyTime()
    starts = [busy_time.started(*times) for times in [(1.0, 7.0), (8.0, 7.0), (9.0, 11.0)]]
    assert starts == [7.0, 8.0, 11.0]
    for begun, ended in zip(starts, (9.0, 10.0, 11.5), strict=True):
        busy_time.ran(begun, ended)
    # From 7 to 10 and from 11 on the devices computed; from 1 to 7 and from 9 to 11 programs were compiled.
    assert (busy_time.busy, busy_time.compiling) == (3.5, 8.0)


def test_folders_with_names_that_are_not_utf_8(one, weights, tmp_path, capsys):
    source, latents, images = (tmp_path / f"{name}\udcff" for name in ("source", "latents", "images"))
    shutil.copytree(one, source)
    assert cli.main(["encode", str(source), str(latents), "--model", str(weights)]) == 0
    assert cli.main(["decode", str(latents), str(images), "--model", str(weights)]) == 0
    out = capsys.readouterr().out
    assert "latents\\xff\n" in out and "images\\xff\n" in out
    assert (images / "a.png").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere", "dst"], "flax-vae encode: nowhere does not exist; give a folder"),
        (["empty", "dst"], "flax-vae encode: empty holds no image file"),
        ([".", "dst", "--batch-size", "0"], "flax-vae encode: batch_size=0 must be at least 1"),
        ([".", "dst", "--process", "0"], "flax-vae encode: --processes and --process need each other"),
    ],
)
def test_user_errors_are_one_line(words, message, weights, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert cli.main(["encode", *words, "--model", str(weights)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(message)
    assert not (tmp_path / "dst").exists()


def test_counts_add_up(weights, tmp_path, capsys):
    source, rng = tmp_path / "source", np.random.default_rng(2)
    source.mkdir()
    for number in range(12):  # of as many sizes
        picture(rng, 9 + number, 30 + 2 * number).save(source / f"{number:02}.png")
    whole = (source / "11.png").read_bytes()
    (source / "cut.png").write_bytes(whole[: len(whole) // 2])  # seen in its pixels
    for name in ("empty.png", "html.jpg", "x.heic", "notes.txt", ".DS_Store"):
        (source / name).touch()
    (source / "html.jpg").write_text("<html>")
    (source / "dead.png").symlink_to("nowhere")
    words = ["encode", str(source), str(tmp_path / "latents"), "--model", str(weights)]
    assert cli.main(words) == 1
    err = capsys.readouterr().err
    assert "empty.png is not an image" in err and "html.jpg is not an image" in err
    assert err.endswith("with --skip-bad 2 the others are encoded without these 2\n")
    assert cli.main([*words, "--skip-bad", "3", "--flip"]) == 0
    out, err = capsys.readouterr()
    assert "15 images found: 12 encoded; 3 could not be read (skipped.jsonl lists them in the end)" in out
    assert (
        "1 file (x.heic)" in err
        and "1 link to nowhere or pipe (dead.png)" in err
        and "2 other files (.DS_Store, notes.txt)" in err
    )
    assert "12 sizes of images, padded to multiples of 2, are compiled, each by itself; --multiple " in err
    multiple = err.split("--multiple ")[1].split()[0]
    assert f"--multiple {multiple} makes them " in err
    assert cli.main([*words[:2], str(tmp_path / "fewer"), *words[3:], "--skip-bad", "3", "--multiple", multiple]) == 0
    promised = err.split(" makes them ")[1].split(",")[0]
    assert f"{promised} size" in capsys.readouterr().err
    index = LatentDataset(tmp_path / "latents").index
    assert (index.entries, index.images, index.skipped) == (24, 12, 3)


def test_force_never_replaces_files_of_other_programs_that_have_our_names(tmp_path):
    (tmp_path / "00000000.pt").write_bytes(b"latent of another program")
    with (
        pytest.raises(UserError, match=r"something else \(00000000.pt\) and is never replaced"),
        replaced(tmp_path, OURS, SIGNS),
    ):
        pass
    (tmp_path / "plan.json").write_text("{}")
    assert require_ours(tmp_path, OURS, SIGNS)
