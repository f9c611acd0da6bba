"""Names, shapes and layouts of every weight, and the files that hold them: numpy in, numpy out.

Neither framework is needed, or loaded; each name is loaded when it is first asked for (PEP 562).
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flax_vae.convert.architecture import (
        PRESETS,
        TINY_PRESETS,
        AutoEncoderParams,
        DiscriminatorParams,
        TinyAutoEncoderParams,
        preset,
    )
    from flax_vae.convert.errors import ArgumentError, ConversionError, FileError, FlaxVaeError
    from flax_vae.convert.table import (
        LAYOUTS,
        Row,
        discriminator_to_flax,
        discriminator_to_torch,
        expand,
        to_flax,
        to_torch,
    )
    from flax_vae.convert.weights import load_folder, load_weights, save_folder, save_weights
else:

    def __getattr__(name):
        from flax_vae.convert.faces import lazy_names  # not while this package is loaded

        return lazy_names(__name__)[0](name)

    def __dir__():
        from flax_vae.convert.faces import lazy_names

        return lazy_names(__name__)[1]()


__all__ = [
    "LAYOUTS",
    "PRESETS",
    "ArgumentError",
    "AutoEncoderParams",
    "ConversionError",
    "DiscriminatorParams",
    "FileError",
    "FlaxVaeError",
    "Row",
    "TINY_PRESETS",
    "TinyAutoEncoderParams",
    "discriminator_to_flax",
    "discriminator_to_torch",
    "expand",
    "load_folder",
    "load_weights",
    "preset",
    "save_folder",
    "save_weights",
    "to_flax",
    "to_torch",
]

if __name__ == "convert":
    from flax_vae.convert.old_names import alias

    alias(__name__, "flax_vae.convert")
