"""Moving averages of weights in training checkpoints.

Runs evaluate and export the average, so readers return the average unless the raw weights are requested.
"""

from collections.abc import Mapping

from flax_vae.convert.errors import FileError
from flax_vae.convert.formats import ArrayLike

# LDM's trainers store the average of `encoder.conv_in.weight` as `model_ema.encoderconv_inweight`, with two scalars of
# their own and the averages of the loss networks, which are not part of the autoencoder.
_MARK = "model_ema."
_NUMBERS = ("decay", "num_updates")
_LOSS = "loss"
_REMEDY = "take another checkpoint, or the raw weights with raw_weights=True (--raw-weights)"


def overlay(path: object, tensors: Mapping[str, ArrayLike], average: Mapping[str, ArrayLike]) -> dict[str, ArrayLike]:
    """Returns the weights, replaced by their averages where there are any.

    Parts that were not trained have no average, such as the encoder when only the decoder is trained.  Within a part,
    either every weight has one or none has.

    Args:
      path: Source of the tensors, for the message.
      tensors: Arrays by name; a dot or a slash ends the name of the part.
      average: Averages by the same names.

    Raises:
      FileError: If an average has no weight, has another shape, or is missing in a part that has averages.
    """
    for name, array in average.items():
        there = tuple(tensors[name].shape) if name in tensors else "none"
        if there != tuple(array.shape):
            raise FileError(
                f"{path}: the moving average holds {name} of shape {tuple(array.shape)}, the weights {there}; "
                f"{_REMEDY}",
                path=path,
            )
    parts = {_part(name) for name in average}
    lacking = [name for name in tensors if _part(name) in parts and name not in average]
    if lacking:
        raise FileError(
            f"{path}: the moving average lacks {len(lacking)} weights, such as {lacking[0]}; expected one for every "
            f"weight of a trained part; {_REMEDY}",
            path=path,
        )
    return {**tensors, **average}


def choose_in_ldm(
    path: object, tensors: Mapping[str, ArrayLike], raw_weights: bool
) -> tuple[Mapping[str, ArrayLike], bool | None]:
    """Returns the tensors of an LDM checkpoint, with the weights replaced by their moving average.

    Args:
      path: Path of the checkpoint, for the message.
      tensors: All tensors of the checkpoint; the result keeps every one.
      raw_weights: Whether to leave the weights as they are.

    Returns:
      The tensors, and whether they are the average; None without an average.

    Raises:
      FileError: As for `overlay`.
    """
    chosen, averaged = tensors, None
    for prefix in sorted({key.partition(_MARK)[0] for key in tensors if _MARK in key}):
        inside = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
        weights = {key: tensor for key, tensor in inside.items() if not key.startswith((_MARK, f"{_LOSS}."))}
        average = _ldm_average(inside, weights)
        # Otherwise it averages another model, such as the U-Net of a whole Stable Diffusion checkpoint.
        if average.keys() & weights.keys():
            averaged = not raw_weights
            if averaged:
                fresh = overlay(path, weights, average)
                chosen = {**chosen, **{prefix + key: tensor for key, tensor in fresh.items()}}
    return chosen, averaged


def _ldm_average(inside: Mapping[str, ArrayLike], weights: Mapping[str, ArrayLike]) -> dict[str, ArrayLike]:
    """Returns the averages under the names of their weights; those without a weight keep their own names."""
    names = {key.replace(".", ""): key for key in weights}
    kept = {key.removeprefix(_MARK): tensor for key, tensor in inside.items() if key.startswith(_MARK)}
    return {
        names.get(flat, flat): tensor
        for flat, tensor in kept.items()
        if flat not in _NUMBERS and not flat.startswith(_LOSS)
    }


def _part(name: str) -> str:
    return name.replace("/", ".").partition(".")[0]
