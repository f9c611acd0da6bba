"""A first fine-tune, as a new user tries it: a folder of anything, a model of diffusers, and what messages advise."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

import flax_vae.convert.cli.main
import flax_vae.train.cli.main
from flax_vae import from_pretrained
from flax_vae.images.read import read_image
from flax_vae.images.sizes import pad_to_factor, to_float
from flax_vae.inference.reconstruction import reconstruct
from flax_vae.train.data.shipped import shipped_photographs
from flax_vae.train.losses import lpips_weights
from tests.flax_vae.images.test_colour import linear_grey
from tests.flax_vae.images.test_formats import png16

diffusers = pytest.importorskip("diffusers")
ENDINGS = ("jpg", "png", "webp", "jpeg", "tif", "bmp", "jfif", "gif", "tga", "ppm")
# Stable Diffusion's, but for its widths (128, 256, 512, 512).
SD = dict(
    act_fn="silu",
    block_out_channels=(32, 64, 128, 128),
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    latent_channels=4,
    layers_per_block=2,
    norm_num_groups=32,
    sample_size=512,
    scaling_factor=0.18215,
)


def photographs(folder):
    """Sixty pieces of the shipped photographs, of mixed formats and sizes, among them what people have in folders."""
    (folder / "holiday").mkdir(parents=True)
    shipped = [read_image(file) for file in sorted(shipped_photographs().glob("*.jpg"))]
    rng = np.random.default_rng(0)

    def piece(number, height, width):
        image = shipped[number % len(shipped)]
        top, left = (int(rng.integers(0, room + 1)) for room in (image.shape[0] - height, image.shape[1] - width))
        return Image.fromarray(image[top : top + height, left : left + width])

    for number in range(50):
        image = piece(number, *rng.integers(64, 110, 2))
        ending = ENDINGS[number % len(ENDINGS)]
        image.save(
            folder / ("holiday" if number % 7 == 0 else "") / f"{number:02}.{ending}", *["JPEG"] * (ending == "jfif")
        )
    piece(50, 30, 100).save(folder / "50 small.jpg")
    piece(51, 90, 50).save(folder / "51 small.png")
    piece(52, 80, 80).save(folder / "52.jpg")
    whole = (folder / "52.jpg").read_bytes()
    (folder / "52.jpg").write_bytes(whole[: len(whole) // 2])  # damaged
    piece(53, 80, 80).save(folder / "53.gif", save_all=True, append_images=[piece(54, 80, 80)])  # animated
    piece(55, 80, 90).convert("CMYK").save(folder / "55.jpg")
    (folder / "56.png").write_bytes(png16(np.asarray(piece(56, 70, 80)).astype(np.uint16) * 257))
    exif = Image.Exif()
    exif[0x0112] = 6
    piece(57, 70, 90).save(folder / "57.jpg", exif=exif)
    piece(58, 70, 90).convert("L").save(folder / "58.png", icc_profile=linear_grey())
    piece(59, 70, 90).convert("RGBA").save(folder / "59.png")
    (folder / "60.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40))
    (folder / ".DS_Store").touch()
    assert len([path for path in folder.rglob("*.*") if path.name[0] != "." and path.is_file()]) == 60


@pytest.mark.slow
def test_a_first_fine_tune_from_nothing_to_pictures_in_diffusers(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    photographs(tmp_path / "photos")
    torch.manual_seed(0)
    published = diffusers.AutoencoderKL(**SD)
    published.save_pretrained("sd")
    monkeypatch.setattr(lpips_weights, "_PACKAGE", "a_package_that_is_not_installed")
    words = ["--preset", "sd-decoder-finetune", "--start-from", "sd", "--data", "photos", "--workdir", "run"]
    words += ["--steps", "12", "--crop-size", "64", "--batch-size", "2", "--model.ch", "32"]

    def train_(*more):
        status = flax_vae.train.cli.main.main([*words, *more])
        return status, *capsys.readouterr()

    # One message names all that cannot be used, and a flag for each kind of trouble.
    status, _, told = train_()
    assert status == 1 and told.count("\n") == 1
    assert (
        "2 of 58 images are too small" in told
        and "50 small.jpg is 30 x 100" in told
        and "51 small.png is 90 x 50" in told
    )
    assert (
        "2 of 58 images cannot be used" in told and "52.jpg cannot be decoded" in told and "53.gif has several" in told
    )
    advised = re.findall(r"--resize \d+|--bad-files skip", told)
    assert advised == ["--resize 64", "--bad-files skip"]
    flags = " ".join(advised).split()

    # A missing extra is said once, with what installs it and a flag that does without.
    status, _, told = train_(*flags)
    assert status == 1 and told.count("\n") == 1
    assert told.count("LPIPS weights (") == 1 and told.count("[lpips]") == 1
    flags += re.search(r"--loss.lpips-weight 0\b", told)[0].split()
    assert not (tmp_path / "run").exists()

    status, told, _ = train_(*flags)
    assert status == 0
    assert "58 photographs and holiday/49.ppm held out" in told
    assert "1 file (60.heic)" in told and "pillow-heif" in told and "1 other file (.DS_Store)" in told
    assert "skipped 2 images" in told
    assert "held-out photograph" in told

    # To diffusers, and pictures there.
    assert flax_vae.convert.cli.main.main(["run/export", "tuned", "--to", "diffusers"]) == 0
    tuned = diffusers.AutoencoderKL.from_pretrained("tuned")
    assert tuned.config.scaling_factor == published.config.scaling_factor
    after, before = tuned.state_dict(), published.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in after if name.startswith(("encoder.", "quant_conv.")))
    assert not torch.equal(after["decoder.conv_out.weight"], before["decoder.conv_out.weight"])

    image = read_image(tmp_path / "photos" / "01.png")
    model, params = from_pretrained("run/export")
    ours = reconstruct(model, params, image[None]).images[0]
    pixels = to_float(pad_to_factor(image, model.params.factor))
    with torch.no_grad():
        theirs = tuned(torch.from_numpy(pixels).permute(2, 0, 1)[None], sample_posterior=False).sample[0]
    theirs = theirs.permute(1, 2, 0).numpy()[: image.shape[0], : image.shape[1]]
    np.testing.assert_allclose(ours, theirs, atol=2e-4 * np.abs(theirs).max())
