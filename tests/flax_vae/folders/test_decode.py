"""Tests of decoding latents to image files: pixels, names, resuming."""

import json
import os
import shutil
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from flax_vae import AutoEncoder, init_params, save_pretrained
from flax_vae.cli import main as cli
from flax_vae.convert import PRESETS, FileError
from flax_vae.convert.files.whole_file import atomic_file
from flax_vae.convert.latents.dataset import LatentDataset
from flax_vae.convert.latents.shard import ShardContent
from flax_vae.convert.latents.statistics import LatentStatistics
from flax_vae.errors import UserError
from flax_vae.folders.batches import BatchLimits
from flax_vae.folders.decode import decode_folder
from flax_vae.folders.encode import encode_folder, encoding_of
from flax_vae.folders.file_names import target_names
from flax_vae.images.sizes import to_uint8

SMALL = replace(PRESETS["tiny"], ch=32, ch_mult=(1, 1), z_channels=4, scale_factor=0.5, shift_factor=0.25)
NAMES = {"a.png": (8, 8), "sub/b.jpg": (7, 8), "sub/b.png": (8, 7), "c.jpg": (5, 12)}
GROUPING = BatchLimits(batch_size=2)


@pytest.fixture(scope="module")
def model():
    model = AutoEncoder(SMALL, dtype=jnp.float32)
    return model, init_params(model, jax.random.key(0))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Returns a folder with four images."""
    source, rng = tmp_path_factory.mktemp("source"), np.random.default_rng(0)
    (source / "sub").mkdir()
    for name, size in NAMES.items():
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(source / name)
    return source


def encoded(source, folder, model, store):
    encode_folder(source, folder, *model, encoding_of(*model, store=store, dtype="float32", flip=True), GROUPING)
    return folder


@pytest.fixture(scope="module")
def latents(source, tmp_path_factory, model):
    """Returns a data set with moments of the images and of their mirror images."""
    return encoded(source, tmp_path_factory.mktemp("encoded") / "latents", model, "moments")


def pixels(folder):
    return {path.relative_to(folder).as_posix(): np.asarray(Image.open(path)) for path in folder.rglob("*.png")}


def direct(latents, model):
    """Returns the images decoded by plain calls, one latent at a time."""
    found, decode = {}, jax.jit(partial(model[0].apply, method="decode"))
    for entry in LatentDataset(latents):
        z = entry.get("latent")
        if z is None:
            z = 0.5 * (entry["mean"] - 0.25)
        image = to_uint8(np.asarray(decode({"params": model[1]}, z[None]))[0])
        if not entry["flipped"]:
            found[entry["name"]] = image[: entry["height"], : entry["width"]]
    return found


@pytest.mark.parametrize(("store", "max_pixels"), [("moments", 1 << 21), ("mean", 64)])  # at once, band by band
def test_decoded_images_keep_names_and_sizes(store, max_pixels, source, tmp_path, model):
    latents = encoded(source, tmp_path / "latents", model, store)
    decode_folder(latents, tmp_path / "images", *model, replace(GROUPING, max_pixels=max_pixels))
    found, expected = pixels(tmp_path / "images"), direct(latents, model)
    assert sorted(found) == ["a.png", "c.png", "sub/b.jpg.png", "sub/b.png.png"]
    assert expected.keys() == NAMES.keys()
    for name, image in expected.items():
        target = f"{name}.png" if "b" in name else f"{name[0]}.png"
        assert found[target].shape == image.shape
        # In batches the last bits may come out differently, and next to a half another integer.
        np.testing.assert_allclose(found[target].astype(int), image, atol=1)


def test_only_missing_images_are_decoded_again(latents, tmp_path, model):
    assert decode_folder(latents, tmp_path, *model, GROUPING).decoded == 4
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.rglob("*.png")}
    assert decode_folder(latents, tmp_path, *model, GROUPING).decoded == 0
    (tmp_path / "a.png").unlink()
    (tmp_path / "sub" / ".b.png.png.0123abcd.partial").touch()
    assert decode_folder(latents, tmp_path, *model, GROUPING).decoded == 1
    after = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.rglob("*.png")}
    assert {path for path in before if before[path][0] != after[path][0]} == {tmp_path / "a.png"}
    assert {path: content for path, (_, content) in before.items()} == {path: end for path, (_, end) in after.items()}
    assert not list(tmp_path.rglob("*.partial"))
    with pytest.raises(UserError, match="grouping.batch_size was 2 and is 3"):
        decode_folder(latents, tmp_path, *model, BatchLimits(3))


def test_another_model_needs_other_model(latents, tmp_path, model):
    other = (model[0], jax.tree.map(lambda leaf: leaf * 1.01, model[1]))
    with pytest.raises(UserError, match="another model encoded the latents .* or --other-model"):
        decode_folder(latents, tmp_path, *other, GROUPING)
    assert not list(tmp_path.iterdir())
    assert decode_folder(latents, tmp_path, *other, GROUPING, other_model=True).decoded == 4
    wider = AutoEncoder(replace(SMALL, z_channels=8), dtype=jnp.float32)
    with pytest.raises(UserError, match="have 4 channels and factor 2, those of the model 8 and 2"):
        decode_folder(latents, tmp_path, wider, {}, GROUPING, other_model=True)


def test_a_fine_tuned_decoder_is_accepted(latents, tmp_path, model):
    further = model[1] | {"decoder": jax.tree.map(lambda leaf: leaf * 1.01, model[1]["decoder"])}
    unlimited = AutoEncoder(replace(SMALL, clamp_logvar=not SMALL.clamp_logvar), dtype=jnp.float32)
    assert decode_folder(latents, tmp_path, unlimited, further, GROUPING).decoded == 4


@pytest.mark.parametrize("max_pixels", [1 << 21, 16])  # at once, band by band
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, "the latent of a.png in .* holds NaN or infinite values"),
        (3e38, "the image decoded from the latent of a.png is not finite in float32"),
    ],
)
def test_latents_or_images_that_are_not_finite_are_refused(value, message, max_pixels, source, tmp_path, model):
    with pytest.MonkeyPatch.context() as patch:  # no encoder of ours writes such latents
        patch.setattr("flax_vae.folders.pipeline.EncodePipeline._check", lambda *_: None)
        keep = ShardContent.add

        def add(content, entries, latents):
            for entry, latent in zip(entries, latents["latent"], strict=True):
                if entry.name == "a.png":
                    latent[0, 0, 0] = value
            keep(content, entries, latents)

        patch.setattr(ShardContent, "add", add)
        patch.setattr(LatentStatistics, "of", lambda *_, **__: LatentStatistics(1, True, (), (), 0, 1, None, None))
        with np.errstate(over="ignore", invalid="ignore"):
            latents = encoded(source, tmp_path / "latents", model, "mean")
    with pytest.raises((UserError, FileError), match=message):
        decode_folder(latents, tmp_path / "images", *model, replace(GROUPING, max_pixels=max_pixels))
    assert "a.png" not in pixels(tmp_path / "images")


def test_every_command_refuses_a_model_that_is_not_finite(source, latents, tmp_path, model, capsys):
    broken = jax.tree.map(lambda leaf: leaf, model[1])
    broken["decoder"]["conv_in"]["bias"] = jnp.full_like(broken["decoder"]["conv_in"]["bias"], jnp.nan)
    save_pretrained(tmp_path / "nan", model[0], broken)
    out = tmp_path / "out.png"
    for words in (
        ["encode", source, out],
        ["decode", latents, out],
        ["reconstruct", source / "a.png", "--out", out],
    ):
        assert cli.main([*map(str, words), "--model", str(tmp_path / "nan")]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{tmp_path / 'nan'} holds values that are NaN or infinite, in decoder/conv_in/bias" in line
        assert not out.exists()


def named(*names):
    return [str(path) for path in target_names(names)]


def test_names_change_little_and_stay_inside_the_folder():
    assert named("a.jpg", "b/a.jpg", "c.JPEG", "d.x.tif") == ["a.png", "b/a.png", "c.png", "d.x.png"]
    assert named("a.jpg", "a.png", "b.png") == ["a.jpg.png", "a.png.png", "b.png"]
    for name in ("../a.png", "/a.png", "b/../../a.png", "", "a\0.png", "a/.."):
        with pytest.raises(FileError, match="which leads outside"):
            named(name)


def test_any_encoded_name_can_be_written(tmp_path):
    odd = [
        *("co:lon.png", "co%3Alon.png", "back\\slash.jpg", "a.jpg", "a.png", "a.jpg.tif", "b.jpg", "b.png/c.jpg"),
        *("x" * 251 + ".png", "x" * 250 + ".jpeg", "x" * 250 + ".tiff", "夜" * 80 + ".png", "夜" * 83 + ".jpg"),
        *("y:" * 125 + ".png", "bad\udcff name.png", "line\n.png", " .png", "z:" * 120 + "/a.png"),
    ]
    assert all(len(os.fsencode(part)) <= 255 for name in odd for part in name.split("/"))
    targets = target_names(odd)
    assert target_names(odd[::-1]) == targets[::-1]  # in any order
    for name, target in zip(odd, targets, strict=True):
        with atomic_file(tmp_path / target) as file:
            file.write_text(name, "utf-8", "surrogateescape")
    for name, target in zip(odd, targets, strict=True):
        assert (tmp_path / target).read_text("utf-8", "surrogateescape") == name
    assert len(set(targets)) == len(odd) == sum(path.is_file() for path in tmp_path.rglob("*"))
    assert named("co:lon.png", "back\\slash.jpg") == ["co%3Alon.png", "back%5Cslash.png"]


def test_a_repeated_name_is_refused():
    with pytest.raises(FileError, match="the image 'a.png' has the name of another one"):
        named("b.png", "a.png", "a.png")


def test_decode_command(latents, tmp_path, model, capsys):
    save_pretrained(tmp_path / "model", *model)
    words = ["decode", str(latents), str(tmp_path / "images"), "--model", str(tmp_path / "model")]
    assert cli.main(words) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"4 images in {tmp_path / 'images'}"
    assert cli.main(words) == 0
    assert capsys.readouterr().out == f"already complete; 4 images in {tmp_path / 'images'}\n"
    shutil.copytree(latents, tmp_path / "damaged")
    index = json.loads((tmp_path / "damaged" / "index.json").read_text())
    (tmp_path / "damaged" / index["shards"][0]["file"]).write_bytes(b"")
    for source, message in ((tmp_path / "damaged", "is not a complete safetensors file"), (tmp_path, "holds no index")):
        assert cli.main(["decode", str(source), str(tmp_path / "other"), *words[3:]]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("flax-vae decode: ") and message in line
    assert not (tmp_path / "other").exists()
