"""Presets: the published architectures, the seed's, and one that trains in minutes.

The published ones limit the posterior's logvar (`clamp_logvar`), as LDM and diffusers do.  black-forest-labs' own code
for FLUX.1 does not limit it, and their code for FLUX.2 uses only the mean; diffusers runs both with the limits.  For
FLUX.1 without them, pass `dataclasses.replace(PRESETS["flux1"], clamp_logvar=False)`; only logvars outside [-30, 20]
differ.
"""

from dataclasses import replace

from flax_vae.convert.architecture.autoencoder import AutoEncoderParams
from flax_vae.convert.architecture.tiny_autoencoder import Architecture, TinyAutoEncoderParams
from flax_vae.convert.errors import ArgumentError, suggest

# The seed's demo, module 8: attention after every residual block, linear time embedding.
_SEED = AutoEncoderParams(
    resolution=64,
    in_channels=3,
    ch=64,
    out_ch=3,
    ch_mult=(1, 2, 4),
    num_res_blocks=2,
    z_channels=32,
    scale_factor=0.18215,
    shift_factor=0.0,
    time_emb_dim=32,
)

# black-forest-labs/flux `util.py`, autoencoder of FLUX.1 [dev] and [schnell].
_FLUX1 = AutoEncoderParams(
    resolution=256,
    in_channels=3,
    ch=128,
    out_ch=3,
    ch_mult=(1, 2, 4, 4),
    num_res_blocks=2,
    z_channels=16,
    scale_factor=0.3611,
    shift_factor=0.1159,
    attn_levels=(),
    downsample_padding="asymmetric",
    clamp_logvar=True,
)

# CompVis/stable-diffusion `v1-inference.yaml`; Stable Diffusion 2 and the ft-mse / ft-ema decoders share it.
_SD1 = replace(_FLUX1, z_channels=4, scale_factor=0.18215, shift_factor=0.0, quant_conv=True)

# CompVis/latent-diffusion `configs/autoencoder/autoencoder_kl_*.yaml`: raw latents, attention at 16 (and 8) pixels of
# the training resolution of 256.
_KL = replace(_SD1, scale_factor=1.0)

# diffusers' `AutoencoderKLFlux2`, and Black Forest Labs' own file: 2 x 2 patches, normalised by running statistics.
_FLUX2 = replace(_FLUX1, z_channels=32, scale_factor=1.0, shift_factor=0.0, quant_conv=True, latent_norm="batch_norm")

_SDXL = replace(_SD1, scale_factor=0.13025)

# diffusers `scripts/convert_cogview4_to_diffusers.py`; CogView3-Plus has the same.
_COGVIEW4 = replace(
    _FLUX1, ch_mult=(1, 4, 8, 8), num_res_blocks=3, scale_factor=1.0, shift_factor=0.0, mid_attention=False
)

PRESETS: dict[str, AutoEncoderParams] = {
    "tiny": AutoEncoderParams(
        resolution=64,
        in_channels=3,
        ch=32,
        out_ch=3,
        ch_mult=(3, 3, 4),  # three channels per group of a norm: with one or two it erases an image's brightness
        num_res_blocks=1,
        z_channels=16,
        scale_factor=1.0,
        shift_factor=0.0,
        attn_levels=(),
        downsample_padding="asymmetric",
        clamp_logvar=True,
    ),
    "seed": _SEED,
    "seed-flux": replace(_FLUX1, attn_levels=None, downsample_padding="symmetric", clamp_logvar=False),
    "flux1": _FLUX1,
    "flux1-reflect": replace(_FLUX1, padding_mode="reflect"),  # Anzhc/MS-LC-EQ-D-VR_VAE
    "flux2": _FLUX2,
    # black-forest-labs/FLUX.2-small-decoder
    "flux2-small-decoder": replace(_FLUX2, decoder_widths=(96, 192, 384, 384)),
    "ernie-image": replace(_FLUX2, batch_norm_eps=1e-5),  # of its pipeline; the 1e-4 of its config.json is wrong
    "sd1": _SD1,
    "sdxl": _SDXL,
    "sdxl-reflect": replace(_SDXL, padding_mode="reflect"),  # Anzhc/MS-LC-EQ-D-VR_VAE
    # playgroundai/playground-v2.5-1024px-aesthetic `vae/config.json`.
    "playground-v2.5": replace(
        _SDXL,
        scale_factor=0.5,
        latent_mean=(-1.6574, 1.886, -1.383, 2.5155),
        latent_std=(8.4927, 5.9022, 6.5498, 5.2299),
    ),
    "sd3": replace(_FLUX1, scale_factor=1.5305, shift_factor=0.0609),
    "cogview4": _COGVIEW4,
    # zai-org/GLM-Image `vae/config.json`, whose statistics hao-ai-lab/FastVideo holds too; its pipeline has no scale.
    "glm-image": replace(
        _COGVIEW4,
        latent_mean=(
            *(-0.2080078125, 1.875, -0.470703125, -1.265625, -1.421875, 0.77734375, -0.3671875, -0.9453125),
            *(0.318359375, 0.7734375, -0.1884765625, -0.022216796875),
            *(-0.220703125, -1.59375, -0.81640625, -0.255859375),
        ),
        latent_std=(
            *(3.0625, 2.203125, 2.265625, 4.84375, 2.5, 3.9375, 2.203125, 3.03125),
            *(2.1875, 2.046875, 2.71875, 2.390625, 2.390625, 2.453125, 2.25, 2.15625),
        ),
    ),
    "kl-f4": replace(_KL, ch_mult=(1, 2, 4), z_channels=3),
    "kl-f8": replace(_KL, ch_mult=(1, 2, 4, 4), z_channels=4),
    "kl-f16": replace(_KL, ch_mult=(1, 1, 2, 2, 4), z_channels=16, attn_levels=(4,)),
    "kl-f32": replace(_KL, ch_mult=(1, 1, 2, 2, 4, 4), z_channels=64, attn_levels=(4, 5)),
    # hustvl/LightningDiT `vavae_f16d32.yaml`: raw latents, as of `kl-f16` with twice the channels.
    "va-vae": replace(_KL, ch_mult=(1, 1, 2, 2, 4), z_channels=32, attn_levels=(4,)),
}


# madebyollin/taesd; the first two have one architecture and different weights.
TINY_PRESETS: dict[str, TinyAutoEncoderParams] = {
    "taesd": TinyAutoEncoderParams(z_channels=4),
    "taesdxl": TinyAutoEncoderParams(z_channels=4),
    "taesd3": TinyAutoEncoderParams(z_channels=16),
    "taef1": TinyAutoEncoderParams(z_channels=16),
    "taef2": TinyAutoEncoderParams(z_channels=32, pool=True, patch=2),
}


ALL_PRESETS: dict[str, Architecture] = {**PRESETS, **TINY_PRESETS}


def preset(name: str) -> Architecture:
    """Returns the preset of a name, of either kind of autoencoder.

    Args:
      name: Name of the preset.

    Examples:
      >>> preset("taef1").latent_channels
      16

    Raises:
      ArgumentError: If the name is unknown; the message lists the names and suggests the nearest.
    """
    if name not in ALL_PRESETS:
        hint = suggest(name, ALL_PRESETS, listed=True)
        raise ArgumentError(f"unknown preset {name!r}; {hint}", field="preset", value=name)
    return ALL_PRESETS[name]
