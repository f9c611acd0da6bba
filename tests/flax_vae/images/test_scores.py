import math

import numpy as np
import pytest

from flax_vae.images.scores import psnr, ssim

rng = np.random.default_rng(0)
IMAGE = rng.integers(0, 256, (40, 33, 3), np.uint8)


def test_psnr_equals_its_formula():
    off_by_one = np.where(IMAGE == 255, 254, IMAGE + 1).astype(np.uint8)
    assert psnr(off_by_one, IMAGE) == pytest.approx(20 * math.log10(255))
    assert psnr(np.full((2, 2, 3), 255, np.uint8), np.zeros((2, 2, 3), np.uint8)) == 0.0
    assert psnr(IMAGE, IMAGE) == math.inf


def naive_ssim(x, y):
    """Computes SSIM window by window, as in the paper."""
    offsets = np.arange(11) - 5
    weights = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    values = []
    for c in range(x.shape[2]):
        for i in range(x.shape[0] - 10):
            for j in range(x.shape[1] - 10):
                a, b = (image[i : i + 11, j : j + 11, c].astype(float) for image in (x, y))
                ma, mb = (weights * a).sum(), (weights * b).sum()
                va, vb = (weights * (a - ma) ** 2).sum(), (weights * (b - mb) ** 2).sum()
                cov = (weights * (a - ma) * (b - mb)).sum()
                c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
                values.append((2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2)))
    return np.mean(values)


@pytest.mark.parametrize("noise", [5, 40, 255])
def test_ssim_equals_the_paper_s_definition(noise):
    other = (IMAGE.astype(int) + rng.integers(-noise, noise + 1, IMAGE.shape)).clip(0, 255).astype(np.uint8)
    assert ssim(other, IMAGE) == pytest.approx(naive_ssim(other, IMAGE), abs=1e-9)


def test_ssim_equals_scikit_image():
    metrics = pytest.importorskip("skimage.metrics")
    other = (IMAGE.astype(int) + rng.integers(-30, 30, IMAGE.shape)).clip(0, 255).astype(np.uint8)
    theirs = metrics.structural_similarity(
        other, IMAGE, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255, channel_axis=-1
    )
    assert ssim(other, IMAGE) == pytest.approx(theirs, abs=1e-9)


def test_ssim_of_an_image_with_itself_is_one():
    assert ssim(IMAGE, IMAGE) == pytest.approx(1.0)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_images_of_different_shapes_are_refused(metric):
    with pytest.raises(ValueError, match="8-bit images of one shape"):
        metric(IMAGE, IMAGE[:-1])
    with pytest.raises(ValueError, match="8-bit images of one shape"):
        metric(IMAGE.astype(float), IMAGE)


def test_ssim_refuses_images_smaller_than_its_window():
    with pytest.raises(ValueError, match="11 x 11"):
        ssim(IMAGE[:10], IMAGE[:10])
