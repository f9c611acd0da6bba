"""Converts between the `config.json` of diffusers' `AutoencoderTiny` and the architecture of a tiny autoencoder.

Every key is mapped, has the only value that our architecture supports, or does not change the model.  Others have been
refused by `flax_vae.convert.weights.diffusers_config`, which chooses the class.
"""

from collections.abc import Mapping
from typing import Any

from flax_vae.convert.architecture import TinyAutoEncoderParams
from flax_vae.convert.errors import ConversionError

TINY = "AutoencoderTiny"

# Defaults of diffusers 0.42.
TINY_DEFAULTS: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "encoder_block_out_channels": [64, 64, 64, 64],
    "decoder_block_out_channels": [64, 64, 64, 64],
    "act_fn": "relu",
    "upsample_fn": "nearest",
    "latent_channels": 4,
    "upsampling_scaling_factor": 2,
    "num_encoder_blocks": [1, 3, 3, 3],
    "num_decoder_blocks": [3, 3, 3, 1],
    "latent_magnitude": 3,
    "latent_shift": 0.5,
    "force_upcast": False,
    "scaling_factor": 1.0,
    "shift_factor": 0.0,
}

# Statistics of each channel, which the class does not have and keeps in its configuration for pipelines that read them.
TINY_STATISTICS = ("latents_mean", "latents_std")

# The only value that our architecture supports.
_FIXED: dict[str, Any] = {
    "act_fn": "relu",
    "upsample_fn": "nearest",
    "upsampling_scaling_factor": 2,
    "scaling_factor": 1.0,  # these latents are those of the diffusion model already
    "shift_factor": 0.0,
}

# Does not change what encoding and decoding compute, and is written back unchanged: the first two say how a latent is
# stored in 8 bits.  The class adds `block_out_channels`, a copy of the decoder's widths, to what it writes.
TINY_KEPT = ("latent_magnitude", "latent_shift", "force_upcast", "block_out_channels")


def read_tiny_config(fields: Mapping[str, Any]) -> TinyAutoEncoderParams:
    """Returns the architecture of the `config.json` of an `AutoencoderTiny`.

    Args:
      fields: Keys of the file that the class has, with lists instead of tuples.

    Raises:
      ConversionError: If our architecture cannot express a value.
    """
    values: dict[str, Any] = {**TINY_DEFAULTS, **dict.fromkeys(TINY_STATISTICS), **fields}
    for key, meant in _FIXED.items():
        if values[key] != meant:
            raise ConversionError(f"{key}={values[key]!r} is not supported; expected {meant!r}", field=key)
    encoder, decoder = values["num_encoder_blocks"], values["num_decoder_blocks"]
    ch, decoder_ch = (_width(values, half) for half in ("encoder", "decoder"))
    if len(encoder) != len(decoder):
        raise ConversionError(
            f"num_decoder_blocks={decoder!r} must have the levels of the encoder, num_encoder_blocks={encoder!r}",
            field="num_decoder_blocks",
        )
    try:
        return TinyAutoEncoderParams(
            z_channels=values["latent_channels"],
            in_channels=values["in_channels"],
            ch=ch,
            out_ch=values["out_channels"],
            encoder_blocks=tuple(encoder),
            decoder_blocks=tuple(reversed(decoder)),  # which diffusers lists from the lowest resolution
            latent_mean=values["latents_mean"],
            latent_std=values["latents_std"],
            decoder_ch=decoder_ch,
        )
    except (TypeError, ValueError) as error:
        raise ConversionError(str(error)) from error


def write_tiny_config(params: TinyAutoEncoderParams) -> dict[str, Any]:
    """Returns the `config.json` from which `diffusers.AutoencoderTiny.from_pretrained` builds this architecture.

    Raises:
      ConversionError: If diffusers cannot express it; the message names the reason.
    """
    if params.pool or params.decoder_pool or params.patch != 1:
        raise ConversionError(
            f"diffusers cannot express this architecture: {TINY} has no pools and gathers no patches (pool="
            f"{params.pool}, patch={params.patch}), and would leave weights out without an error; write one file with "
            "diffusers' names, DST.safetensors, or use another layout"
        )
    statistics = zip(TINY_STATISTICS, (params.latent_mean, params.latent_std), strict=True)
    return {
        "_class_name": TINY,
        "_diffusers_version": "0.42.1",  # the release that defines the meaning of these keys
        **TINY_DEFAULTS,
        "in_channels": params.in_channels,
        "out_channels": params.out_ch,
        "encoder_block_out_channels": [params.ch] * params.num_levels,
        "decoder_block_out_channels": [params.up_ch] * params.num_levels,
        "latent_channels": params.z_channels,
        "num_encoder_blocks": list(params.encoder_blocks),
        "num_decoder_blocks": list(reversed(params.decoder_blocks)),
        **{key: list(numbers) for key, numbers in statistics if numbers is not None},
    }


def _width(values: Mapping[str, Any], half: str) -> Any:
    """Returns the width of all levels of a half.

    Raises:
      ConversionError: If they have several widths, or another number of levels.
    """
    key, blocks = f"{half}_block_out_channels", values[f"num_{half}_blocks"]
    widths = values[key]
    if not isinstance(widths, list) or len({*map(repr, widths)}) != 1 or len(widths) != _length(blocks):
        raise ConversionError(
            f"{key}={widths!r} must be one width, repeated for each of the levels num_{half}_blocks={blocks!r}",
            field=key,
        )
    return widths[0]


def _length(blocks: Any) -> int | None:
    return len(blocks) if isinstance(blocks, list) else None
