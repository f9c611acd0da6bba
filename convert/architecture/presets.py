"""Presets: the published architectures, the seed's, and one that trains in minutes.

The published ones limit the posterior's logvar (`clamp_logvar`), as LDM and diffusers do.  black-forest-labs' own code
for FLUX.1 does not limit it, and their code for FLUX.2 uses only the mean; diffusers runs both with the limits.  For
FLUX.1 without them, pass `dataclasses.replace(PRESETS["flux1"], clamp_logvar=False)`; only logvars outside [-30, 20]
differ.
"""

from dataclasses import replace

from flax_vae.convert.architecture.autoencoder import AutoEncoderParams
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
    "flux2": replace(
        _FLUX1, z_channels=32, scale_factor=1.0, shift_factor=0.0, quant_conv=True, latent_norm="batch_norm"
    ),
    "sd1": _SD1,
    "sdxl": replace(_SD1, scale_factor=0.13025),
    "sd3": replace(_FLUX1, scale_factor=1.5305, shift_factor=0.0609),
    "kl-f4": replace(_KL, ch_mult=(1, 2, 4), z_channels=3),
    "kl-f8": replace(_KL, ch_mult=(1, 2, 4, 4), z_channels=4),
    "kl-f16": replace(_KL, ch_mult=(1, 1, 2, 2, 4), z_channels=16, attn_levels=(4,)),
    "kl-f32": replace(_KL, ch_mult=(1, 1, 2, 2, 4, 4), z_channels=64, attn_levels=(4, 5)),
}


def preset(name: str) -> AutoEncoderParams:
    """Returns the preset of a name.

    Raises:
      ArgumentError: If the name is unknown; the message lists the names and suggests the nearest.
    """
    if name not in PRESETS:
        hint = suggest(name, PRESETS, listed=True)
        raise ArgumentError(f"unknown preset {name!r}; {hint}", field="preset", value=name)
    return PRESETS[name]
