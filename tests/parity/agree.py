"""How two arrays are compared, and how a pair of models is made to hold the same random weights.

The weights always pass through the shipped converter: a test that brought its own would prove nothing about ours.
"""

import jax
import numpy as np
import torch

import flax_vae
import torch_ref
from flax_vae.convert import AutoEncoderParams, expand, to_flax
from flax_vae.convert.cli.run_both import difference
from flax_vae.convert.table.rows import COUNTER, flatten
from tests.flax_vae.random_models import quick_jit
from torch_ref.loading import to_tensor

# Largest difference, of the reference's RMS.  float64 is the truth test, float32 documents rounding.  In bfloat16 one
# last place of one large number is already 3e-2 of the RMS, so there the law is `assert_as_accurate`.
TOLERANCE = {"float64": 1e-10, "float32": 2e-5}
ACCURACY = 1.5  # our error against float64, in units of torch's own


def random_state_dict(params: AutoEncoderParams, dtype="float64", seed=0) -> dict[str, np.ndarray]:
    """Random numbers for every tensor: norm scales about 1 and biases about 0 too, or a lost one would not be seen."""
    rng = np.random.default_rng(seed)
    state_dict = {}
    for row in expand(params):
        numbers = rng.standard_normal(row.torch_shape)
        if row.ours.endswith("/scale"):
            numbers = 1 + 0.2 * numbers
        elif row.ours == "bn/running_var":
            numbers = np.abs(numbers) + 0.2
        elif row.ours == COUNTER:
            state_dict[row.theirs] = np.array(3, np.int64)
            continue
        elif row.ours.endswith("/kernel"):
            numbers *= np.prod(row.torch_shape[1:]) ** -0.5
        else:
            numbers *= 0.2
        state_dict[row.theirs] = numbers.astype(np.float32).astype(dtype)
    return state_dict


def torch_model(params: AutoEncoderParams, state_dict: dict[str, np.ndarray]) -> torch_ref.AutoEncoder:
    with torch.device("meta"):
        model = torch_ref.AutoEncoder(params)
    model.load_state_dict({key: to_tensor(array) for key, array in state_dict.items()}, strict=True, assign=True)
    return model


def flax_model(params: AutoEncoderParams, state_dict: dict[str, np.ndarray], **options):
    """The model and its parameters, by the shipped converter."""
    dtype = next(iter(state_dict.values())).dtype
    tree = jax.tree.map(jax.numpy.asarray, to_flax(state_dict, params, "flux"))
    assert jax.tree.leaves(tree)[0].dtype == dtype, "float64 needs the x64 fixture"
    return flax_vae.AutoEncoder(params, param_dtype=dtype, **options), tree


def nchw(array):
    """A Flax map as a torch tensor; vectors, and None, are left as they are."""
    if array is None:
        return None
    array = np.asarray(array)
    return to_tensor(array.transpose(0, 3, 1, 2) if array.ndim == 4 else array)


def nhwc(tensor) -> np.ndarray:
    """A torch map as float64 in Flax's order."""
    array = tensor.detach().double().numpy()
    return array.transpose(0, 2, 3, 1) if array.ndim == 4 else array


def inputs(params: AutoEncoderParams, height: int, width: int, dtype="float64", seed=1):
    """A batch of two images `b h w c`, a time where the model takes one, and noise for the latent."""
    rng = np.random.default_rng(seed)
    f = params.factor
    images = rng.uniform(-1, 1, (2, height, width, params.in_channels))
    time = None
    if params.time_emb_dim is not None:
        linear = params.time_embedding == "linear"
        time = rng.standard_normal((2, params.time_emb_dim)) if linear else rng.uniform(0, 1000, 2)
    raw = f // params.patch
    noise = rng.standard_normal((2, height // raw, width // raw, params.z_channels))
    # Rounded to float32 first, so that every precision sees the same numbers.
    return [None if a is None else a.astype(np.float32).astype(dtype) for a in (images, time, noise)]


def assert_agree(ours, theirs, tolerance: float, what: str = "outputs") -> None:
    relative = difference(ours, theirs)
    if relative <= tolerance:
        return
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    where = tuple(int(i) for i in np.unravel_index(np.abs(ours - theirs).argmax(), ours.shape))
    raise AssertionError(
        f"{what} differ by {relative:.3g} of the reference's RMS, allowed {tolerance:.3g}; "
        f"most at {where}: ours {ours[where]:.10g}, theirs {theirs[where]:.10g}"
    )


def assert_trees_agree(ours, theirs, tolerance):
    """Leaf by leaf, in units of the leaf's RMS, or of 1e-3 of all leaves' where its own is nearly zero.

    Some gradients are zero but for rounding: the bias of a key projection moves all scores of a query alike, which the
    softmax does not see, and a bias before a normalisation of single channels is taken away again.
    """
    ours, theirs = flatten(ours), flatten(theirs)
    assert ours.keys() == theirs.keys()
    overall = np.sqrt(np.mean(np.concatenate([np.ravel(leaf) for leaf in theirs.values()]) ** 2))
    for path, leaf in theirs.items():
        unit = max(np.sqrt(np.mean(leaf**2)), 1e-3 * overall)
        apart = np.abs(np.asarray(ours[path]) - leaf).max() / unit
        assert apart <= tolerance, f"{path} differs by {apart:.3g} of its RMS"


def rms_error(array, truth) -> float:
    array, truth = np.asarray(array, np.float64), np.asarray(truth, np.float64)
    return float(np.sqrt(np.mean((array - truth) ** 2) / np.mean(truth**2)))


def assert_as_accurate(ours, theirs, truth, what: str = "outputs") -> None:
    """Our rounding error against float64 is of the size of torch's own."""
    our_error, their_error = rms_error(ours, truth), rms_error(theirs, truth)
    if not our_error <= ACCURACY * their_error:
        raise AssertionError(f"{what}: error {our_error:.3g} against float64, torch has {their_error:.3g}")


def everything(model, images, time, noise) -> dict:
    """All that a model can be asked for, by the names that both frameworks have."""
    posterior = model.posterior(images, time)
    return {
        "latents": model.encode(images, time, noise=noise),
        "means": posterior.mean,
        "logvars": posterior.logvar,
        "standard deviations": posterior.std,
        "KL divergences": posterior.kl(),
        "decoded noise": model.decode(model.scale(noise), time),
        "images": model(images, time, noise=noise),
    }


def predict(model, tree, images, time, noise) -> dict[str, jax.Array]:
    """Everything of the Flax model, in one compiled program."""
    jit = quick_jit if images.dtype == np.float64 else jax.jit
    return jit(lambda tree, *data: model.apply({"params": tree}, *data, method=everything))(tree, images, time, noise)


def predict_torch(model, images, time, noise) -> dict[str, np.ndarray]:
    """Everything of the torch twin, in Flax's order of axes."""
    with torch.no_grad():
        outputs = everything(model, nchw(images), nchw(time), nchw(noise))
    return {name: nhwc(output) for name, output in outputs.items()}
