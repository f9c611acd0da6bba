"""Tests of resizing as ADM does it, against the published arithmetic, written anew."""

import numpy as np
import pytest
from PIL import Image

from flax_vae.errors import DataError, UserError
from flax_vae.images import ResizedSource, read_image
from flax_vae.images.sizes import resize_image, resized_size
from flax_vae.images.sources.folder import FolderSource

# Width and height for 64 pixels: equal, odd, halved once or often, enlarged, just below and at twice the side, rounded
# at one half, and far from square.
SIZES = [
    (64, 64), (65, 64), (97, 131), (127, 128), (128, 128), (129, 255),
    (256, 385), (517, 300), (1031, 767), (40, 50), (31, 200), (300, 65),
]  # fmt: skip


def published(image, side):
    """Returns the resized image and its crop, in the steps that the authors of ADM, DiT and MeanFlow describe."""
    width, height = image.size
    while min(width, height) >= 2 * side:
        width, height = width // 2, height // 2
        image = image.resize((width, height), resample=Image.Resampling.BOX)
    ratio = side / min(width, height)
    image = image.resize((round(width * ratio), round(height * ratio)), resample=Image.Resampling.BICUBIC)
    left, above = (image.width - side) // 2, (image.height - side) // 2
    return np.array(image), np.array(image.crop((left, above, left + side, above + side)))


@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
def test_crops_equal_the_published_arithmetic_to_the_last_byte(size, tmp_path):
    width, height = size
    image = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
    image[: height // 2] //= 4  # an edge beside the noise
    Image.fromarray(image).save(tmp_path / "a.png")
    whole, square = published(Image.open(tmp_path / "a.png"), 64)
    for crop, expected in (("none", whole), ("center", square)):
        assert resize_image(image, 64, crop).tobytes() == expected.tobytes()
        assert resized_size(height, width, 64, crop) == expected.shape[:2]
        source = ResizedSource(FolderSource(tmp_path), 64, crop)
        assert source.size(0) == expected.shape[:2] and source.name(0) == "a.png"
        assert source[0].tobytes() == source.decode(0, source.content(0)).tobytes() == expected.tobytes()
        assert source.digest(0) == FolderSource(tmp_path).digest(0)
    assert square.shape == (64, 64, 3)


def test_wrong_sides_and_images_that_would_be_huge_are_refused(tmp_path):
    Image.new("RGB", (100_000, 2)).save(tmp_path / "line.png")
    source = FolderSource(tmp_path)
    with pytest.raises(UserError, match="resize=0"):
        ResizedSource(source, 0)
    with pytest.raises(DataError, match=r"line.png is 2 x 100000 and would be resized to 64 x 3200000"):
        ResizedSource(source, 64).size(0)
    with pytest.raises(DataError, match="line.png"):
        ResizedSource(source, 64)[0]
    assert read_image(tmp_path / "line.png").shape == (2, 100_000, 3)
