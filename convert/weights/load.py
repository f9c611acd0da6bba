"""Loads an autoencoder's weights and architecture from any file or folder."""

import os
from dataclasses import replace

from flax_vae.convert.architecture import Architecture, AutoEncoderParams
from flax_vae.convert.architecture import preset as preset_named
from flax_vae.convert.errors import ConversionError
from flax_vae.convert.table import Weights, fitting_presets, identify, nearest_preset
from flax_vae.convert.weights.open import WeightFile, open_weights


def load_weights(
    path: str | os.PathLike[str],
    params: Architecture | str | None = None,
    *,
    verify: bool = True,
    raw_weights: bool = False,
    variant: str | None = None,
    prefix: str | None = None,
    revision: str | None = None,
    subfolder: str | None = None,
) -> Weights:
    """Opens weights of any kind and determines their layout and architecture.

    Args:
      path: File or folder, see `flax_vae.convert.weights.open_weights`; or a model on the Hugging Face hub,
        `hf:org/name[/folder or file][@revision]`, see `flax_vae.convert.weights.hub.find`.
      params: Architecture or name of a preset, for weights without a configuration.  If there is a configuration, both
        must agree, except in what `params` decides: `clamp_logvar`; beside a configuration of diffusers also
        `padding_mode`, which it cannot hold, and `batch_norm_eps`, which is wrong in ERNIE-Image's.
      verify: Whether to compare digests; see `flax_vae.convert.weights.open_weights`.
      raw_weights: Whether to take the raw weights; see `flax_vae.convert.weights.open_weights`.
      variant: Variant of a diffusers folder; see `flax_vae.convert.weights.open_weights`.
      prefix: Prefix of the autoencoder's names, where a file holds several.
      revision: Branch, tag or commit of a model on the hub; see `flax_vae.convert.weights.open_weights`.
      subfolder: Folder inside `path`.

    Returns:
      Weights with their layout and architecture; arrays are read when they are used.

    Examples:
      >>> from flax_vae.convert import expand, save_weights
      >>> params = PRESETS["tiny"]
      >>> arrays = {row.theirs: np.zeros(row.torch_shape, np.float16) for row in expand(params)}
      >>> save_weights("model.safetensors", Weights(arrays, "flux", params))
      >>> weights = load_weights("model.safetensors")
      >>> weights.layout, weights.params == params
      ('flux', True)

    Raises:
      FileNotFoundError: If it, or a part of it, does not exist.
      FileError: If it is damaged or of an unknown kind.
      ConversionError: If it holds no autoencoder of this family or not that of `params` and the configuration, or if
        scale, shift and padding are unknown.
      ValueError: If the preset is unknown, `revision` is given for a local path, or `revision` or `subfolder` twice.
    """
    source = open_weights(
        path, verify=verify, variant=variant, raw_weights=raw_weights, revision=revision, subfolder=subfolder
    )
    return resolve_architecture(source, preset_named(params) if isinstance(params, str) else params, prefix)


def resolve_architecture(source: WeightFile, params: Architecture | None, prefix: str | None = None) -> Weights:
    """Returns the weights of a source with their complete architecture.

    Args:
      source: Opened weights.
      params: Architecture, if known; see `load_weights`.
      prefix: Prefix of the autoencoder's names, where a file holds several.

    Raises:
      ConversionError: As for `load_weights`.
    """
    config = source.config
    try:
        if params is not None and config is not None:
            # The weights do not depend on it, and configurations from before the field existed have False.
            if isinstance(params, AutoEncoderParams) and isinstance(config, AutoEncoderParams):
                decided = {"clamp_logvar"} | ({"padding_mode"} if source.kind == "diffusers folder" else set())
                if source.kind == "diffusers folder" and params.latent_norm == config.latent_norm:
                    decided |= {"batch_norm_eps"}
                config = replace(config, **{name: vars(params)[name] for name in decided})
            if differences := config.differences(params):
                fields = [f"{name} is {vars(config)[name]!r}, not {vars(params)[name]!r}" for name in differences]
                raise ConversionError(f"in the configuration beside the weights, {'; '.join(fields)}")
        weights = identify(source.tensors, config or params, prefix=prefix, layout=source.layout)
    except ConversionError as error:
        raise ConversionError(f"{source.path}: {error}", path=source.path) from None
    if weights.config_known:
        return replace(weights, kept=source.kept)
    presets = fitting_presets(weights.params)
    if presets:
        advice = f"the tensors fit {' and '.join(presets)}; choose with preset= (--preset)"
    else:
        near, differences = nearest_preset(weights.params)
        advice = (
            f"the nearest preset is {near} ({'; '.join(differences)}): convert it with flax-vae-convert SRC DST "
            "--to flux --config FILE, a config.json of ours or of diffusers; a training run may be "
            "given the architecture instead, by --preset with --model options, and then reads Adam's state too"
        )
    raise ConversionError(f"{source.path} does not define scale, shift and padding; {advice}", path=source.path)
