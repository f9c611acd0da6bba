"""The seed's own code beside both implementations: same names, same numbers, in float64."""

from copy import deepcopy

import numpy as np
import pytest
import torch

import flax_vae
import torch_ref
from flax_vae.convert import PRESETS, AutoEncoderParams, expand
from tests.parity import seed
from tests.parity.agree import assert_agree, flax_model, inputs, nchw, nhwc, quick_jit, random_state_dict, torch_model
from tests.parity.cases import MODELS
from tests.parity.test_blocks import flax_path

pytestmark = pytest.mark.usefixtures("x64")

TOLERANCE = 1e-10

SIZES = {  # architecture, height and width
    "small, with time": (MODELS["time"], 12, 20),
    "small, without time": (MODELS["attention everywhere"], 12, 20),
    "three levels, two blocks, with time": (
        AutoEncoderParams(32, 3, 32, 3, [1, 2, 4], 2, 6, 0.5, -0.25, time_emb_dim=7),
        8,
        20,
    ),
    "the seed's demo": (PRESETS["seed"], 64, 64),
}


def seed_model(params: AutoEncoderParams, state_dict) -> seed.AutoEncoder:
    """The seed's model, given the weights of ours with `strict=True`."""
    fields = {name: getattr(params, name) for name in seed.AutoEncoderParams.__dataclass_fields__}
    model = seed.AutoEncoder(seed.AutoEncoderParams(**fields)).double()
    model.load_state_dict(torch_model(params, state_dict).state_dict(), strict=True)
    return model


@pytest.mark.parametrize("name", SIZES)
def test_seed_autoencoder_equals_both(name):
    params, height, width = SIZES[name]
    state_dict = random_state_dict(params)
    original, twin = seed_model(params, state_dict), torch_model(params, state_dict)
    model, tree = flax_model(params, state_dict)
    images, time, noise = inputs(params, height, width)

    # The seed draws its noise inside: both sides are given the same generator state, ours the numbers themselves.
    shape = nchw(noise).shape
    torch.manual_seed(5)
    noise = torch.randn(shape, dtype=torch.float64)
    with torch.no_grad():
        torch.manual_seed(5)
        latent = original.encode(nchw(images), nchw(time))
        image = original.decode(latent, nchw(time))
        torch.manual_seed(5)
        whole = original(nchw(images), nchw(time))
        torch.manual_seed(5)
        their_latent = twin.encode(nchw(images), nchw(time))  # its own noise, drawn as the seed draws it
        their_image = twin(nchw(images), nchw(time), noise=noise)
        original.reg.sample = False
        mode = original.encode(nchw(images), nchw(time))
    ours = quick_jit(
        lambda tree, images, time, noise: (
            model.apply({"params": tree}, images, time, noise=noise, method="encode"),
            model.apply({"params": tree}, images, time, noise=noise),
            model.apply({"params": tree}, images, time, sample=False, method="encode"),
        )
    )(tree, images, time, nhwc(noise))

    assert_agree(nhwc(their_latent), nhwc(latent), TOLERANCE, "torch latents")
    assert_agree(nhwc(their_image), nhwc(whole), TOLERANCE, "torch images")
    assert_agree(nhwc(image), nhwc(whole), TOLERANCE, "the seed's own two ways")
    assert_agree(ours[0], nhwc(latent), TOLERANCE, "flax latents")
    assert_agree(ours[1], nhwc(whole), TOLERANCE, "flax images")
    assert_agree(ours[2], nhwc(mode), TOLERANCE, "flax modes")


BLOCKS = [  # place in the model "time", the seed's block, ours, shape of the input
    ("encoder.mid.attn_1", lambda: seed.AttnBlock(64), flax_vae.AttnBlock(64), (2, 5, 7, 64)),
    ("encoder.mid.block_1", lambda: seed.ResnetBlock(64, 64, 10), flax_vae.ResnetBlock(64, 64, 10), (2, 5, 7, 64)),
    ("encoder.down.1.block.0", lambda: seed.ResnetBlock(32, 64, 10), flax_vae.ResnetBlock(32, 64, 10), (2, 5, 7, 32)),
    ("encoder.down.0.downsample", lambda: seed.Downsample(32), flax_vae.Downsample(32), (2, 6, 10, 32)),
    ("encoder.down.0.downsample", lambda: seed.Downsample(32), flax_vae.Downsample(32), (2, 7, 5, 32)),
    ("decoder.up.1.upsample", lambda: seed.Upsample(64), flax_vae.Upsample(64), (2, 5, 7, 64)),
    (
        "encoder",
        lambda: seed.Encoder(16, 3, 32, [1, 2], 1, 4, time_emb_dim=10),
        flax_vae.Encoder(MODELS["time"]),
        (2, 6, 10, 3),
    ),
    (
        "decoder",
        lambda: seed.Decoder(32, 3, [1, 2], 1, 3, 16, 4, time_emb_dim=10),
        flax_vae.Decoder(MODELS["time"]),
        (2, 3, 5, 4),
    ),
]


@pytest.mark.parametrize("time", [True, False], ids=["with time", "without time"])
@pytest.mark.parametrize(("place", "make", "block", "shape"), BLOCKS, ids=[f"{b[0]} {b[3]}" for b in BLOCKS])
def test_seed_block_equals_both(place, make, block, shape, time):
    params, original = MODELS["time"], make()
    if not time:
        if "time_emb_dim" in block.__dataclass_fields__:
            block = block.clone(time_emb_dim=None)
            original = seed.ResnetBlock(original.in_channels, original.out_channels)
        elif place in ("encoder", "decoder"):
            block = block.clone(params=MODELS["attention everywhere"])
            arguments = {"encoder": (16, 3, 32, [1, 2], 1, 4), "decoder": (32, 3, [1, 2], 1, 3, 16, 4)}[place]
            original = type(original)(*arguments)
        params = MODELS["attention everywhere"]
    state_dict = random_state_dict(params)
    twin = torch_model(params, state_dict).get_submodule(place)
    original.double().load_state_dict(twin.state_dict(), strict=True)
    tree = flax_model(params, state_dict)[1]
    for part in flax_path(place):
        tree = tree[part]

    rng = np.random.default_rng(3)
    arguments = [rng.standard_normal(shape)]
    if time and (getattr(block, "time_emb_dim", None) or place in ("encoder", "decoder")):
        arguments.append(rng.standard_normal((2, 10)))
    with torch.no_grad():
        expected = nhwc(original(*map(nchw, arguments)))
        assert_agree(nhwc(twin(*map(nchw, arguments))), expected, TOLERANCE, f"torch {place}")
    assert_agree(quick_jit(block.apply)({"params": tree}, *arguments), expected, TOLERANCE, f"flax {place}")


@pytest.mark.parametrize("sample", [True, False])
def test_seed_gaussian_equals_both(sample):
    moments = np.random.default_rng(0).standard_normal((2, 3, 5, 8))
    original = seed.DiagonalGaussian(sample=sample, learnable_logvar=True).double()
    twin = torch_ref.DiagonalGaussian(sample=sample, learnable_logvar=True).double()
    with torch.no_grad():
        original.logvar_scaling.fill_(0.3)
        twin.load_state_dict(original.state_dict(), strict=True)
        torch.manual_seed(1)
        expected = nhwc(original(nchw(moments)))
        torch.manual_seed(1)
        theirs = nhwc(twin(nchw(moments)))
        torch.manual_seed(1)
        noise = nhwc(torch.randn(2, 4, 3, 5, dtype=torch.float64)) if sample else None
    ours = flax_vae.DiagonalGaussian(sample=sample, learnable_logvar=True).apply(
        {"params": {"logvar_scaling": np.array([0.3])}}, moments, noise=noise
    )
    assert_agree(theirs, expected, TOLERANCE, "torch")
    assert_agree(ours, expected, TOLERANCE, "flax")


def test_seed_swish_equals_both():
    x = torch.linspace(-30, 30, 101, dtype=torch.float64)
    expected = seed.Swish()(x)
    assert_agree(torch_ref.swish(x), expected, TOLERANCE, "torch")
    assert_agree(flax_vae.swish(x.numpy()), expected, TOLERANCE, "flax")


@pytest.mark.parametrize("name", MODELS)
def test_parameters_have_the_seeds_order(name):
    # torch.optim saves its state by the number of each parameter: in another order it is another parameter's.
    params = MODELS[name]
    fields = {name: getattr(params, name) for name in seed.AutoEncoderParams.__dataclass_fields__}
    with torch.device("meta"):
        twin, original = torch_ref.AutoEncoder(params), seed.AutoEncoder(seed.AutoEncoderParams(**fields))
        if params.learnable_logvar:  # which the seed's record cannot say
            original.reg = seed.DiagonalGaussian(learnable_logvar=True)
    ours, theirs = dict(twin.named_parameters()), dict(original.named_parameters())
    # Switches leave attention out, or add modules that the seed does not have.
    assert [key for key in ours if key in theirs] == [key for key in theirs if key in ours]
    assert len(ours.keys() - theirs.keys()) == 2 * (params.quant_conv + params.pre_decoder_conv)
    left_out = (".attn.",) if params.mid_attention else (".attn.", ".mid.attn_1.")
    assert all(any(part in key for part in left_out) for key in theirs if key not in ours)
    assert [row.theirs for row in expand(params)] == list(twin.state_dict())


def test_an_optimizer_state_of_the_seeds_model_continues_in_ours():
    params = SIZES["three levels, two blocks, with time"][0]
    original = seed_model(params, random_state_dict(params))
    original.reg.sample = False
    twin = torch_model(params, random_state_dict(params)).requires_grad_(True)
    # A large epsilon: where a gradient is nothing but rounding, Adam would make a whole step of it.
    optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-2, eps=1e-3) for model in (original, twin)]
    images, time, _ = (nchw(array) for array in inputs(params, 8, 20))

    def update(latent, model, optimizer):
        optimizer.zero_grad()
        (model.decode(latent, time) - images).square().mean().backward()
        optimizer.step()

    update(original.encode(images, time), original, optimizers[0])
    twin.load_state_dict(original.state_dict(), strict=True)
    optimizers[1].load_state_dict(deepcopy(optimizers[0].state_dict()))  # which would share its tensors
    update(original.encode(images, time), original, optimizers[0])
    update(twin.encode(images, time, sample=False), twin, optimizers[1])
    theirs = original.state_dict()
    for key, tensor in twin.state_dict().items():
        assert_agree(tensor, theirs[key], TOLERANCE, key)
