"""Runs a trained model on images of any size: reconstruction, decoding in bands, several devices.

Imports the model and `flax_vae.images`; used by the commands and by evaluation.
"""

from typing import TYPE_CHECKING

from flax_vae.convert.faces import lazy_names

if TYPE_CHECKING:
    from flax_vae.inference.banded_decode import decode_in_bands
    from flax_vae.inference.data_parallel import CompileAhead, DataParallel, rows_of
    from flax_vae.inference.model import load_model
    from flax_vae.inference.over_devices import (
        DECODER_PARAMS,
        ENCODER_PARAMS,
        decode_over_devices,
        moments_over_devices,
    )
    from flax_vae.inference.reconstruction import Reconstruction, encode_means, needs_bands, reconstruct
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "CompileAhead",
    "DECODER_PARAMS",
    "DataParallel",
    "ENCODER_PARAMS",
    "Reconstruction",
    "decode_in_bands",
    "decode_over_devices",
    "encode_means",
    "load_model",
    "moments_over_devices",
    "needs_bands",
    "reconstruct",
    "rows_of",
]
