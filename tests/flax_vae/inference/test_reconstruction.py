"""Tests of `flax-vae reconstruct`: picture, output, refused inputs."""

import os
import re
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from flax_vae import AutoEncoder, save_pretrained
from flax_vae.cli import main as cli
from flax_vae.conditioning import same_time
from flax_vae.convert import PRESETS
from flax_vae.convert.extras import install_command
from flax_vae.errors import UserError
from flax_vae.images.comparison import WIDE, draw_comparison, visible_factor
from flax_vae.images.scores import compare_images, psnr
from flax_vae.images.sizes import to_float, to_uint8
from flax_vae.inference.reconstruction import needs_bands
from tests.flax_vae.random_models import PLAIN, random_params

HEIGHT, WIDTH = 13, 11  # neither is a multiple of the factor, 2
PIXELS = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


@pytest.fixture(scope="module")
def params():
    return random_params(AutoEncoder(PLAIN))


@pytest.fixture(scope="module")
def model(params, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "model"
    save_pretrained(folder, AutoEncoder(PLAIN), params)
    return str(folder)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def by_hand(params):
    """Returns the reconstruction of an image by the model's methods."""

    @jax.jit
    def whole(images):
        z = AutoEncoder(PLAIN).apply({"params": params}, images, sample=False, method="encode")
        return AutoEncoder(PLAIN).apply({"params": params}, z, method="decode")

    def make(pixels):
        height, width, _ = pixels.shape
        rows, columns = (np.minimum(np.arange(side + side % 2), side - 1) for side in (height, width))
        return to_uint8(np.asarray(whole(to_float(pixels[rows][:, columns])[None])))[0, :height, :width]

    return make


def run(capsys, *words):
    code = cli.main(["reconstruct", *map(str, words)])
    return code, *capsys.readouterr()


def told_psnr(line):
    return float(re.search(r"PSNR (\S+) dB", line)[1])


def panels(path, height, width, zoom):
    """Returns original, reconstruction and difference, one pixel of every enlarged one."""
    picture = np.asarray(Image.open(path))
    top = WIDE.gap + 4 * WIDE.line
    lefts = [left for left in range(WIDE.gap, picture.shape[1]) if (picture[top:, left] != 255).any()]
    starts = [left for left in lefts if left - 1 not in lefts]
    squares = [picture[top : top + height * zoom, left : left + width * zoom] for left in starts]
    for square in squares:
        assert (square == np.kron(square[::zoom, ::zoom], np.ones((zoom, zoom, 1), np.uint8))).all()
    return [square[::zoom, ::zoom] for square in squares]


def test_picture_shows_original_reconstruction_and_difference(model, by_hand, here, capsys):
    pixels = np.minimum(PIXELS, 250)  # apart from the white around it
    Image.fromarray(pixels).save("photo.png")
    code, out, err = run(capsys, "photo.png", "--model", model)
    assert (code, err) == (0, "")
    zoom = 256 // HEIGHT
    original, reconstruction, difference = panels("photo.reconstruction.png", HEIGHT, WIDTH, zoom)
    np.testing.assert_array_equal(original, pixels)
    assert np.abs(reconstruction.astype(int) - by_hand(pixels)).max() <= 1  # two programs may round a half differently
    factor = visible_factor(compare_images("", original, reconstruction))
    apart = np.abs(original.astype(int) - reconstruction)
    np.testing.assert_array_equal(difference, np.minimum(apart * factor, 255))
    scores = compare_images("photo.png", original, reconstruction).scores
    assert out.splitlines() == [
        f"photo.png: 11 wide, 13 high, PSNR {scores.psnr:.2f} dB, SSIM {scores.ssim:.3f}",
        "picture: photo.reconstruction.png",
    ]


def write_sixteen_bits(path):
    Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257).save(path)


def write_transparent(path):
    Image.fromarray(np.dstack([PIXELS, np.zeros(PIXELS.shape[:2], np.uint8)])).save(path)


def write_rotated(path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(PIXELS)).save(path, exif=exif)


def test_images_of_all_formats_are_stacked(model, by_hand, here, capsys):
    grey = np.repeat(PIXELS[..., :1], 3, axis=2)
    kinds = {
        "grey.png": (lambda path: Image.fromarray(PIXELS[..., 0]).save(path), grey),
        "16.png": (write_sixteen_bits, grey),
        "clear.png": (write_transparent, np.full_like(PIXELS, 255)),
        "turned.png": (write_rotated, PIXELS),
        "dot.png": (lambda path: Image.fromarray(PIXELS[:1, :1]).save(path), PIXELS[:1, :1]),
    }
    for name, (write, _) in kinds.items():
        write(name)
    code, out, err = run(capsys, *kinds, "--model", model, "--out", "new/all.png")
    assert (code, err) == (0, "")
    *lines, last = out.splitlines()
    assert last == "picture: new/all.png"
    for line, (name, (_, expected)) in zip(lines, kinds.items(), strict=True):
        height, width, _ = expected.shape
        assert line.startswith(f"{name}: {width} wide, {height} high, PSNR ")
        assert told_psnr(line) == pytest.approx(psnr(by_hand(expected), expected), abs=0.05)
        assert ("SSIM" in line) == (name != "dot.png")
    with Image.open("new/all.png") as picture:
        rows = [4 * WIDE.line + WIDE.gap + side * (256 // side) for side in (13, 13, 13, 13, 1)]
        assert picture.height == WIDE.gap + sum(rows)
    assert sorted(os.listdir(here)) == sorted([*kinds, "new"])
    assert os.listdir("new") == ["all.png"]


def write_animated(path):
    frames = [Image.fromarray(PIXELS), Image.fromarray(PIXELS[::-1].copy())]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def write_truncated(path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(path)
    Path(path).write_bytes(Path(path).read_bytes()[:-4000])


BAD_IMAGES = [
    (lambda path: Path(path).write_bytes(b""), "x.png is not an image that Pillow can read"),
    (lambda path: Path(path).write_text("hello"), "x.png is not an image that Pillow can read"),
    (write_truncated, "x.png cannot be decoded"),
    (write_animated, "x.png has several frames or pages; save one of them"),
    (
        lambda path: Image.new("1", (10_000, 10_000)).save(path),
        "x.png has more than 89,478,485 pixels",
    ),
    (lambda path: Path(path).mkdir(), "x.png holds no image file; give a folder with images"),
    (lambda path: None, "x.png does not exist; give a folder"),
]


@pytest.mark.parametrize(("write", "message"), BAD_IMAGES)
def test_other_files_are_refused_in_one_line(write, message, model, here, capsys):
    write("x.png")
    before = os.listdir(here)
    code, out, err = run(capsys, "x.png", "--model", model)
    assert (code, out) == (1, "")
    assert err.startswith(f"flax-vae reconstruct: {message}")
    assert err.count("\n") == 1
    assert os.listdir(here) == before


BAD_FLAGS = [
    ([], "no input images; pass one or more addresses"),
    (["photo.png", "photo.png"], "two of the images have an equal name; write all of them to one file with --out"),
    (["photo.png", "--out", "new.jpg"], "new.jpg does not end in .png"),
    (["photo.png", "--out", "."], ". is a folder; pass a PNG file in it"),
    (["photo.png", "--out", "there.png"], "there.png exists; replace it with --force"),
    (["photo.png", "--out", "photo.png", "--force"], "photo.png is one of the input images"),
    (["photo.png", "--out", "there.png/new.png"], "there.png is not a writable folder for there.png/new.png"),
    (["photo.png", "--model", "nowhere"], "nowhere does not exist"),
    (["photo.png", "--time", "5"], "time=5 is given, but the model is not conditioned on time; leave it out"),
]


@pytest.mark.parametrize(("words", "message"), BAD_FLAGS)
def test_conflicting_arguments_are_refused_in_one_line(words, message, model, here, capsys):
    Image.fromarray(PIXELS).save("photo.png")
    Path("there.png").write_text("what was there")
    photo = Path("photo.png").read_bytes()
    code, out, err = run(capsys, *words, *([] if "--model" in words else ["--model", model]))
    assert (code, out) == (1, "")
    assert message in err
    assert err.count("\n") == 1
    assert sorted(os.listdir(here)) == ["photo.png", "there.png"]
    assert (Path("there.png").read_text(), Path("photo.png").read_bytes()) == ("what was there", photo)


def test_a_read_only_folder_is_refused_before_loading_the_model(capsys):
    with tempfile.TemporaryDirectory() as folder:
        photo, locked = Path(folder, "photo.png"), Path(folder, "locked")
        Image.fromarray(PIXELS).save(photo)
        locked.mkdir(0o555)
        os.chmod(folder, 0o755)
        root = os.geteuid() == 0  # who may write everywhere
        if root:
            os.seteuid(65534)
        try:
            code, _, err = run(capsys, photo, "--model", "nowhere", "--out", locked / "x.png")
        finally:
            if root:
                os.seteuid(0)
    assert code == 1
    assert err.endswith(f"{locked} is not a writable folder for {locked}/x.png; choose another with --out\n")


def test_force_replaces_a_picture_and_large_images_are_decoded_in_bands(model, by_hand, here, capsys, monkeypatch):
    Image.fromarray(PIXELS).save("photo.png")
    Path("photo.reconstruction.png").touch()
    assert run(capsys, "photo.png", "--model", model)[0] == 1
    assert Path("photo.reconstruction.png").read_bytes() == b""
    monkeypatch.setattr("flax_vae.inference.reconstruction._LARGE_MAP", 0)
    monkeypatch.setattr("flax_vae.inference.reconstruction._decode", None)
    code, out, _ = run(capsys, "photo.png", "--model", model, "--force")
    assert code == 0
    assert told_psnr(out) == pytest.approx(psnr(by_hand(PIXELS), PIXELS), abs=0.05)
    assert len(panels("photo.reconstruction.png", HEIGHT, WIDTH, 256 // HEIGHT)) == 3


def test_needs_bands_from_one_gibibyte():
    assert not needs_bands(PRESETS["flux1"], 1024, 1024)
    assert needs_bands(PRESETS["flux1"], 1024, 1025)
    assert not needs_bands(PRESETS["flux1"], 1024, 2048, "bfloat16")


def test_out_of_memory_is_one_line_and_other_errors_propagate(model, here, capsys, monkeypatch):
    def fail(*args, **kwargs):
        raise jax.errors.JaxRuntimeError(next(reasons))

    reasons = iter(["RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nmore", "INTERNAL: a bug"])
    Image.fromarray(PIXELS).save("photo.png")
    monkeypatch.setattr("flax_vae.inference.reconstruction.reconstruct", fail)
    code, _, err = run(capsys, "photo.png", "--model", model)
    assert (code, err.count("\n")) == (1, 1)
    assert "photo.png is too large for the memory of this machine; make it smaller" in err
    with pytest.raises(jax.errors.JaxRuntimeError, match="a bug"):
        cli.main(["reconstruct", "photo.png", "--model", model])


def test_a_reconstruction_that_is_not_finite_is_refused(model, here, capsys, monkeypatch):
    decode = lambda model, mesh, params, z, time: np.full((1, 14, 12, 3), np.nan)  # noqa: E731
    monkeypatch.setattr("flax_vae.inference.reconstruction._decode", decode)
    Image.fromarray(PIXELS).save("photo.png")
    code, _, err = run(capsys, "photo.png", "--model", model)
    assert (code, err.count("\n")) == (1, 1)
    assert f"the reconstruction of photo.png by {model} is not finite" in err
    assert os.listdir(here) == ["photo.png"]


@pytest.mark.parametrize("kind", ["linear", "sinusoidal"])
def test_a_model_with_time_needs_a_time(kind):
    record = replace(PLAIN, time_emb_dim=8, time_embedding=kind)
    with pytest.raises(UserError, match="conditioned on time; pass a time"):
        same_time(2, None, record)
    time = np.asarray(same_time(2, 250.0, record))
    angles = 250.0 * 10_000.0 ** (-np.arange(4) / 4)
    expected = [250.0] if kind == "sinusoidal" else [np.cos(angles), np.sin(angles)]
    np.testing.assert_allclose(time.reshape(2, -1), np.tile(np.concatenate([expected], axis=None), (2, 1)), atol=1e-4)


def test_models_of_other_channels_are_refused(here, capsys):
    other = AutoEncoder(replace(PLAIN, in_channels=1, out_ch=1))
    save_pretrained("grey", other, random_params(other))
    Image.fromarray(PIXELS).save("photo.png")
    code, _, err = run(capsys, "photo.png", "--model", "grey")
    assert code == 1
    assert err.endswith("grey takes 1 and gives 1 channels; images are read as RGB, three\n")


def test_differences_are_amplified():
    flat = np.full((20, 20, 3), 100, np.uint8)
    for step, factor in [(0, 32), (1, 32), (5, 32), (20, 8), (60, 4), (100, 2), (130, 1)]:
        assert visible_factor(compare_images("", flat, flat + np.uint8(step))) == factor


def test_a_newline_in_a_name_is_drawn_as_a_space():
    same, names = compare_images("", PIXELS, PIXELS), ("two\nlines.png", "two lines.png")
    one, other = (draw_comparison(same, [name], amplified=1, layout=WIDE) for name in names)
    assert one == other


def test_missing_pillow_is_named_with_its_install_command(here):
    code = (
        "import sys; sys.modules['PIL'] = None\n"
        "from flax_vae.cli import main as cli\n"
        "sys.exit(cli.main(['reconstruct', 'x.png', '--model', 'y']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    hint = install_command()
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr == f"flax-vae reconstruct: this needs PIL (import of PIL halted; None in sys.modules): {hint}\n"


def test_bfloat16_is_close_to_float32(model, here, capsys):
    Image.fromarray(PIXELS).save("photo.png")
    told = []
    for dtype in (jnp.float32, jnp.bfloat16):
        code, out, _ = run(capsys, "photo.png", "--model", model, "--dtype", jnp.dtype(dtype).name, "--force")
        assert code == 0
        told.append(told_psnr(out))
    assert told[0] == pytest.approx(told[1], abs=0.3)
