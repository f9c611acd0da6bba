"""Moving averages of weights, which training keeps beside the weights themselves.

The average is what a training run evaluates and exports, so it is what a reader gets unless the raw weights are asked
for.
"""

from collections.abc import Mapping

from flax_vae.convert.errors import FileError
from flax_vae.convert.formats import ArrayLike

# LDM's trainers keep the average of `encoder.conv_in.weight` as `model_ema.encoderconv_inweight`, beside two numbers of
# their own, and also that of the losses' weights, which are no part of an autoencoder.
_MARK = "model_ema."
_NUMBERS = ("decay", "num_updates")
_LOSS = "loss"
_REMEDY = "take another checkpoint, or the raw weights with raw_weights=True (--raw-weights)"


def overlay(path: object, tensors: Mapping[str, ArrayLike], average: Mapping[str, ArrayLike]) -> dict[str, ArrayLike]:
    """Returns the weights with their averages in their places.

    Parts that were not trained have no average, such as the encoder where only the decoder learned; but in one part all
    weights have one, or none.

    Args:
      path: of the source, for the message.
      tensors: name to array; a dot or a slash ends the name of the part.
      average: the averages, under the same names.

    Raises:
      FileError: if an average has no weight or another shape, or is missing in a part that has averages.
    """
    for name, array in average.items():
        there = tuple(tensors[name].shape) if name in tensors else "none"
        if there != tuple(array.shape):
            raise FileError(
                f"{path}: the moving average holds {name} of shape {tuple(array.shape)}, the weights {there}; {_REMEDY}"
            )
    parts = {_part(name) for name in average}
    lacking = [name for name in tensors if _part(name) in parts and name not in average]
    if lacking:
        raise FileError(
            f"{path}: the moving average lacks {len(lacking)} weights of parts that it holds, such as {lacking[0]}; "
            f"{_REMEDY}"
        )
    return {**tensors, **average}


def choose_in_ldm(
    path: object, tensors: Mapping[str, ArrayLike], raw_weights: bool
) -> tuple[Mapping[str, ArrayLike], bool | None]:
    """Returns the tensors of an LDM checkpoint with its moving average in the place of the weights.

    Args:
      path: of the checkpoint, for the message.
      tensors: all of its tensors; none is left out of the result.
      raw_weights: whether to leave the weights as they are.

    Returns:
      The tensors, and whether they are the average; None where there is none.

    Raises:
      FileError: as `overlay`.
    """
    chosen, averaged = tensors, None
    for prefix in sorted({key.partition(_MARK)[0] for key in tensors if _MARK in key}):
        inside = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
        weights = {key: tensor for key, tensor in inside.items() if not key.startswith((_MARK, f"{_LOSS}."))}
        average = _ldm_average(inside, weights)
        # Otherwise it is of something else, such as the U-Net of a whole Stable Diffusion checkpoint.
        if average.keys() & weights.keys():
            averaged = not raw_weights
            if averaged:
                fresh = overlay(path, weights, average)
                chosen = {**chosen, **{prefix + key: tensor for key, tensor in fresh.items()}}
    return chosen, averaged


def _ldm_average(inside: Mapping[str, ArrayLike], weights: Mapping[str, ArrayLike]) -> dict[str, ArrayLike]:
    """Returns the averages under the names of their weights, and under their own where there is no weight."""
    names = {key.replace(".", ""): key for key in weights}
    kept = {key.removeprefix(_MARK): tensor for key, tensor in inside.items() if key.startswith(_MARK)}
    return {
        names.get(flat, flat): tensor
        for flat, tensor in kept.items()
        if flat not in _NUMBERS and not flat.startswith(_LOSS)
    }


def _part(name: str) -> str:
    return name.replace("/", ".").partition(".")[0]
