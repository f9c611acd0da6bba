"""Decodes batches of latents to image files; reads, decodes and writes concurrently."""

import io
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float
from PIL import Image

from flax_vae.autoencoder import Model
from flax_vae.conditioning import same_time
from flax_vae.convert.console import Progress, printable
from flax_vae.convert.errors import FileError
from flax_vae.convert.files import write_at
from flax_vae.convert.latents import Encoding, LatentDataset
from flax_vae.errors import UserError
from flax_vae.folders.batches import Batch, ImageEntry
from flax_vae.folders.stream import stream
from flax_vae.images import to_uint8
from flax_vae.inference import ENCODER_PARAMS, CompileAhead, DataParallel, decode_in_bands


class BatchDecoder:
    """Decodes the latents of a data set with a model."""

    def __init__(self, model: Model, params: dict[str, Any], encoding: Encoding, devices: Sequence[Any]):
        """Places the decoder's weights on the devices.

        Args:
          model: Autoencoder.
          params: Parameters of the model; those of the encoder may be missing.
          encoding: Settings that the latents were encoded with.
          devices: `jax.Device`s of this process.

        Raises:
          UserError: If the model takes a time and the data set has none, or vice versa.
        """
        same_time(1, encoding.time, model.params)  # raises if the time does not fit the model
        self._model, self._encoding = model, encoding
        self._params = {name: value for name, value in params.items() if name not in ENCODER_PARAMS}
        self._decode = DataParallel(self._images, self._params, devices)
        self._scale = jax.jit(lambda params, z: self._scaled(params, z))

    @property
    def dtype(self) -> str:
        """Name of the computation dtype."""
        return "the dtype of the weights" if self._model.dtype is None else np.dtype(self._model.dtype).name

    def __call__(self, compiled_size: int, z: Float[np.ndarray, "b h w c"]) -> Array:
        """Starts to decode a batch of stored latents."""
        return self._decode(compiled_size, z)

    def compile_in(self, thread: ThreadPoolExecutor, size: tuple[int, int, int]) -> Future[Any]:
        """Starts to compile the program of batches in another thread; see `DataParallel.compile_in`.

        Args:
          thread: Executor of a single thread.
          size: Batch size of the program, and height and width of the images.
        """
        compiled_size, height, width = size
        factor, channels = self._encoding.factor, self._encoding.channels
        latent = jax.ShapeDtypeStruct((height // factor, width // factor, channels), np.float32)
        return self._decode.compile_in(thread, compiled_size, latent)

    def in_bands(self, z: Float[np.ndarray, "b h w c"]) -> Float[np.ndarray, "b h*f w*f 3"]:
        """Decodes latents one after another, each band by band."""
        time = same_time(len(z), self._encoding.time, self._model.params)
        return decode_in_bands(self._model, self._params, self._scale(self._params, z), time)

    def _images(self, params: Any, z: Array) -> Array:
        time = same_time(z.shape[0], self._encoding.time, self._model.params)
        z = self._scaled(params, z)
        return self._model.apply({"params": params}, z, time, method="decode")  # pyright: ignore[reportReturnType]

    def _scaled(self, params: Any, z: Array) -> Array:
        if self._encoding.scaled:
            return z
        return self._model.apply({"params": params}, z, method="scale")  # pyright: ignore[reportReturnType]


@dataclass(frozen=True)
class DecodePipeline:
    """Reads, decodes and writes batches concurrently.

    Attributes:
      latents: Data set in its stored dtype.
      decoder: Model that decodes.
      max_pixels: Pixels above which an image is decoded band by band.
      destination: Folder for the images.
      targets: Path of each image in the folder, by position in the data set.
      missing: Positions of the images to write.
    """

    latents: LatentDataset
    decoder: BatchDecoder
    max_pixels: int
    destination: Path
    targets: dict[int, PurePosixPath]
    missing: set[int]

    def __call__(self, batches: Sequence[Batch], progress: Progress) -> None:
        """Decodes batches in order.

        Raises:
          FileError: If a shard is damaged, or a latent has a wrong shape or is not finite.
          UserError: If a decoded image is not finite; nothing of its batch is written.
        """

        def begin(threads: ThreadPoolExecutor, batch: Batch) -> Future[Float[np.ndarray, "b h w c"]]:
            coming = threads.submit(self._read, batch)
            programs.top_up()  # while the latents are read
            return coming

        def compute(batch: Batch, coming: Future[Float[np.ndarray, "b h w c"]]) -> Array | np.ndarray:
            if self._is_large(batch):
                return self.decoder.in_bands(coming.result())
            programs.wait(batch.program)
            images = self.decoder(batch.compiled_size, coming.result())
            programs.top_up()  # while the batch is computed
            return images

        def collect(threads: ThreadPoolExecutor, batch: Batch, images: Array | np.ndarray) -> None:
            values = np.asarray(images, np.float32)
            wanted = [(row, p) for row, p in enumerate(batch.pictures) if p.number in self.missing]
            self._check([picture for row, picture in wanted if not np.isfinite(values[row]).all()])
            pixels = to_uint8(values)
            writing = [threads.submit(self._write, p, pixels[row, : p.height, : p.width]) for row, p in wanted]
            for future in writing:
                future.result()
            progress.add(len(wanted))

        sizes = (batch.program for batch in batches if not self._is_large(batch))
        with CompileAhead(self.decoder.compile_in, sizes) as programs:
            stream(batches, begin, compute, collect)

    def _is_large(self, batch: Batch) -> bool:
        """Returns whether an image is decoded band by band."""
        return batch.height * batch.width > self.max_pixels

    def _read(self, batch: Batch) -> Float[np.ndarray, "b h w c"]:
        encoding = self.latents.index.encoding
        stored = [self.latents[picture.number][encoding.parts[0]] for picture in batch.pictures]
        expected = (batch.height // encoding.factor, batch.width // encoding.factor, encoding.channels)
        if any(latent.shape != expected for latent in stored):
            raise FileError(
                f"latents of {printable(batch.pictures[0].name)} and others do not have the shape {expected} that "
                "belongs to the size of their images; encode them again"
            )
        latents = np.stack(stored).astype(np.float32)
        for picture, latent in zip(batch.pictures, latents, strict=True):
            if not np.isfinite(latent).all():
                raise FileError(
                    f"the latent of {printable(picture.name)} in {printable(self.latents.folder)} holds NaN or "
                    "infinite values; expected finite ones: encode the image again"
                )
        return latents

    def _check(self, wrong: list[ImageEntry]) -> None:
        if wrong:
            raise UserError(
                f"the image decoded from the latent of {printable(wrong[0].name)} is not finite in "
                f"{self.decoder.dtype}; expected finite numbers: use --dtype float32, or encode the image again"
            )

    def _write(self, picture: ImageEntry, pixels: np.ndarray) -> None:
        content = io.BytesIO()
        Image.fromarray(pixels).save(content, format="PNG")
        write_at(self.destination / self.targets[picture.number], content.getvalue())
