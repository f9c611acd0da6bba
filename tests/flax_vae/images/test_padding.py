import numpy as np
import pytest

from flax_vae.images.sizes import pad_to_factor, padded_size, to_float, to_uint8


@pytest.mark.parametrize(("size", "padded"), [((1, 1), (8, 8)), ((8, 16), (8, 16)), ((9, 23), (16, 24))])
def test_padding_repeats_the_last_row_and_column_up_to_the_next_multiple(size, padded):
    assert padded_size(*size, 8) == padded
    images = np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8)
    rows, columns = (np.minimum(np.arange(to), side - 1) for to, side in zip(padded, size, strict=True))
    for given in (images, images[0], images.astype(np.float32)):
        result = pad_to_factor(given, 8)
        assert result.dtype == given.dtype
        np.testing.assert_array_equal(result, given[..., rows, :, :][..., columns, :])


def test_bytes_round_trip_through_float():
    every = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(to_uint8(to_float(every)), every)
    assert to_float(every)[[0, -1]].tolist() == [-1.0, 1.0]
    assert to_float(every).dtype == np.float32
    assert to_uint8(np.array([-3.0, 3.0])).tolist() == [0, 255]
