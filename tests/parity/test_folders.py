"""A model folder written by one framework and read by the other, and refusals in both with the same words."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import flax_vae
import torch_ref
from flax_vae.convert import PRESETS, to_flax
from flax_vae.convert.formats.pytorch import BIT_PATTERNS, to_array
from flax_vae.convert.table.rows import flatten
from flax_vae.convert.weights.folder import save_folder
from tests.parity.agree import TOLERANCE, assert_agree, nchw, nhwc, random_state_dict, torch_model
from torch_ref.loading import to_tensor

SMALL = dataclasses.replace(PRESETS["tiny"], ch=32, ch_mult=(1,))
RECORD = dataclasses.replace(PRESETS["tiny"], attn_levels=None, learnable_logvar=True)
IMAGES = np.random.default_rng(0).uniform(-1, 1, (2, 8, 12, 3)).astype(np.float32)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_torch_to_flax_to_torch_is_bit_exact(tmp_path, dtype):
    state_dict = random_state_dict(RECORD, jax.numpy.dtype(dtype))
    torch_ref.save_pretrained(tmp_path / "one", torch_model(RECORD, state_dict))
    flax_vae.save_pretrained(tmp_path / "two", *flax_vae.from_pretrained(tmp_path / "one"))
    back = torch_ref.from_pretrained(tmp_path / "two")
    assert back.params == RECORD
    assert {key: to_array(tensor).tobytes() for key, tensor in back.state_dict().items()} == {
        key: array.tobytes() for key, array in state_dict.items()
    }


@pytest.mark.usefixtures("x64")
def test_flax_to_torch_to_flax_is_bit_exact_and_computes_the_same(tmp_path):
    model = flax_vae.AutoEncoder(RECORD)
    params = jax.tree.map(np.asarray, to_flax(random_state_dict(RECORD, "float32"), RECORD))
    flax_vae.save_pretrained(tmp_path / "one", model, params)
    twin = torch_ref.from_pretrained(tmp_path / "one")
    torch_ref.save_pretrained(tmp_path / "two", twin)
    _, back = flax_vae.from_pretrained(tmp_path / "two")
    for path, leaf in flatten(params).items():
        np.testing.assert_array_equal(flatten(back)[path], leaf)
    images = IMAGES.astype("float64")
    with torch.no_grad():
        theirs = nhwc(twin.double()(nchw(images), sample=False))
    wide = jax.tree.map(lambda leaf: leaf.astype("float64"), back)
    assert_agree(model.apply({"params": wide}, images, sample=False), theirs, TOLERANCE["float64"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64])
def test_tensors_and_arrays_are_the_same_bits(dtype):
    tensor = torch.arange(-12, 12).reshape(2, 3, 4).to(dtype).transpose(0, 2) * 3
    back = to_tensor(to_array(tensor))
    assert back.dtype == dtype
    assert torch.equal(back, tensor)
    assert to_tensor(np.asarray(to_array(tensor))[..., ::-1]).shape == tensor.shape  # any strides


CALLS = [
    (PRESETS["tiny"], (1, 3, 10, 8), None, {}, "10 x 8 .* multiples of 4; pad them to 12 x 8"),
    (PRESETS["tiny"], (1, 4, 8, 8), None, {}, "have 4 channels as 'b c h w'; expected 3"),
    (PRESETS["tiny"], (1, 3, 8, 8), (1, 6), {}, "has no time embedding"),
    (PRESETS["tiny"], (1, 3, 8, 8), None, {"noise": torch.zeros(1, 8, 2, 1)}, "must be equal"),
    (PRESETS["tiny"], (1, 3, 8, 8), None, {"noise": torch.zeros(1, 8, 2, 2), "sample": False}, "does not sample"),
    (PRESETS["seed"], (1, 3, 8, 8), None, {}, r"pass time of shape \(1, 32\)"),
    (PRESETS["seed"], (1, 3, 8, 8), (2, 32), {}, r"expects \(1, 32\)"),
]


@pytest.mark.parametrize(("record", "shape", "time", "options", "message"), CALLS)
def test_torch_refuses_bad_arguments_in_the_same_words(record, shape, time, options, message):
    with torch.device("meta"):
        model = torch_ref.AutoEncoder(record)
        arguments = [torch.zeros(shape), None if time is None else torch.zeros(time)]
    with pytest.raises(ValueError, match=message):
        model.encode(*arguments, **options)


@pytest.mark.parametrize("method", ["encode", "posterior", "forward", "decode"])
def test_torch_refuses_integers_and_empty_batches(method):
    with torch.device("meta"):
        model = torch_ref.AutoEncoder(PRESETS["tiny"])
        integers, nothing = (
            torch.zeros((batch, 16, 2, 2) if method == "decode" else (batch, 3, 8, 8), dtype=dtype)
            for batch, dtype in ((1, torch.uint8), (0, torch.float32))
        )
    what = "latents" if method == "decode" else "images"
    with pytest.raises(ValueError, match=f"^{what} are uint8; expected float64, float32, float16, bfloat16; "):
        getattr(model, method)(integers)
    with pytest.raises(ValueError, match=rf"^{what} have shape \(0, .*; expected a batch of at least one; skip empty"):
        getattr(model, method)(nothing)


@pytest.mark.parametrize("source", ["float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_of_eight_bits_need_another_dtype_to_compute_in(tmp_path, source, dtype):
    weights = {key: (array / 8).astype(source) for key, array in random_state_dict(SMALL, "float32").items()}
    save_folder(tmp_path / "model", SMALL, weights)
    with pytest.raises(ValueError, match=f"^the weights are {source}, .* cannot compute with; choose dtype=, for"):
        torch_ref.from_pretrained(tmp_path / "model")
    with pytest.raises(
        ValueError, match=f"^the weights are {source}, .* cannot compute with; choose param_dtype=, for"
    ):
        flax_vae.from_pretrained(tmp_path / "model", dtype=jnp.bfloat16)
    twin = torch_ref.from_pretrained(tmp_path / "model", dtype=getattr(torch, dtype))
    model, params = flax_vae.from_pretrained(tmp_path / "model", param_dtype=dtype)
    assert {tensor.dtype for tensor in twin.parameters()} == {getattr(torch, dtype)}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {dtype}
    images = np.random.default_rng(0).uniform(-1, 1, (1, 8, 8, 3)).astype(np.float32)
    with torch.no_grad():
        expected = twin.encode(nchw(images).to(getattr(torch, dtype)), sample=False).float()
    ours = model.apply({"params": params}, jnp.asarray(images, dtype), sample=False, method="encode")
    assert ours.dtype.name == dtype
    assert_agree(ours, nhwc(expected), 1e-5 if dtype == "float32" else 0.1)


def test_every_dtype_of_a_file_becomes_a_tensor_bit_for_bit():
    for dtype in (*BIT_PATTERNS, "float64", "float16", "int64", "uint8"):
        array = np.arange(256, dtype=np.uint8).view(dtype).reshape(2, -1)
        tensor = to_tensor(array)
        assert str(tensor.dtype) == f"torch.{dtype}" and to_array(tensor).tobytes() == array.tobytes()


def test_torch_blocks_refuse_too():
    x = torch.zeros(1, 32, 2, 2)
    with pytest.raises(ValueError, match="pass time_emb"):
        torch_ref.ResnetBlock(32, 32, 5)(x)
    with pytest.raises(ValueError, match="has no time_mlp"):
        torch_ref.ResnetBlock(32, 32)(x, torch.zeros(1, 5))
    with pytest.raises(ValueError, match="'SAME' must be 'symmetric'"):
        torch_ref.Downsample(32, "SAME")
    with pytest.raises(ValueError, match="channels as .*; expected"):
        torch_ref.AutoEncoder(PRESETS["tiny"]).decode(torch.zeros(1, 3, 2, 2))


def test_twins_have_the_same_classes_in_the_same_files():
    for name in ("layers", "coders", "gaussian", "autoencoder", "embedding", "discriminator"):
        ours, theirs = (
            [
                value.__name__
                for value in vars(__import__(f"{package}.{name}", fromlist=[name])).values()
                if isinstance(value, type) and value.__module__ == f"{package}.{name}"
            ]
            for package in ("flax_vae", "torch_ref")
        )
        assert ours == theirs, name
