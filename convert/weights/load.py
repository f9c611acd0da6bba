"""From any file or folder to an autoencoder's weights and everything that is known about them."""

import os
from dataclasses import replace

from flax_vae.convert.architecture import AutoEncoderParams
from flax_vae.convert.architecture import preset as preset_named
from flax_vae.convert.errors import ConversionError
from flax_vae.convert.table import Weights, fitting_presets, nearest_preset, understand
from flax_vae.convert.weights.hub import locate
from flax_vae.convert.weights.open import WeightFile, open_weights


def load_weights(
    path: str | os.PathLike[str],
    params: AutoEncoderParams | str | None = None,
    *,
    verify: bool = True,
    raw_weights: bool = False,
    variant: str | None = None,
    prefix: str | None = None,
) -> Weights:
    """Opens weights of any kind and settles what they are.

    Args:
      path: a file or folder, see `flax_vae.convert.weights.open_weights`; or a model on the Hugging Face hub,
        `hf:org/name[/folder or file][@revision]`, see `flax_vae.convert.weights.locate`.
      params: the architecture, or the name of a preset, where no configuration lies beside the weights.  Where one
        does, both must agree, except in `clamp_logvar`, which `params` decides.
      verify: see `flax_vae.convert.weights.open_weights`.
      raw_weights: see `flax_vae.convert.weights.open_weights`.
      variant: see `flax_vae.convert.weights.open_weights`.
      prefix: what stands before the names of the autoencoder, where a file holds several.

    Raises:
      FileNotFoundError: if it does not exist, or a part of it is missing.
      FileError: if it is damaged or of no known kind.
      ConversionError: if it holds no autoencoder of this family, or another one than `params` and the configuration
        say, or if nothing says its scale, shift and padding.
      ValueError: if there is no such preset.
    """
    source = open_weights(locate(path, variant), verify=verify, variant=variant, raw_weights=raw_weights)
    return resolve_architecture(source, preset_named(params) if isinstance(params, str) else params, prefix)


def resolve_architecture(source: WeightFile, params: AutoEncoderParams | None, prefix: str | None = None) -> Weights:
    """Returns the weights of a source, of which everything is known.

    Raises:
      ConversionError: as `load_weights`.
    """
    config = source.config
    if params is not None and config is not None:
        # The same weights serve with and without, and a configuration of before the field existed has False.
        config = replace(config, clamp_logvar=params.clamp_logvar)
        if differences := config.differences(params):
            fields = [f"{name} is {vars(config)[name]!r}, not {vars(params)[name]!r}" for name in differences]
            raise ConversionError(f"{source.path}: the configuration beside the weights says {'; '.join(fields)}")
    try:
        weights = understand(source.tensors, config or params, prefix=prefix, layout=source.layout)
    except ConversionError as error:
        raise ConversionError(f"{source.path}: {error}") from None
    if weights.settled:
        return replace(weights, kept=source.kept)
    presets = fitting_presets(weights.params)
    if presets:
        advice = f"its tensors fit {' and '.join(presets)}: say which with preset= (--preset)"
    else:
        near, differences = nearest_preset(weights.params)
        advice = (
            f"the nearest preset is {near} ({'; '.join(differences)}): convert it with flax-vae-convert SRC DST "
            "--to flux --config FILE, a config.json of ours or of diffusers"
        )
    raise ConversionError(f"{source.path} says nothing of scale, shift and padding; {advice}")
