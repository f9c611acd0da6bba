"""Encodes images to shards of latents; reads files, computes batches and writes shards concurrently."""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from flax_vae.convert.console import Progress, printable
from flax_vae.convert.errors import shorten_sentences
from flax_vae.convert.latents import ChannelStats, Encoding, LatentEntry, ShardContent, Skip
from flax_vae.errors import DataError, UserError
from flax_vae.folders.batch_encoder import LatentEncoder
from flax_vae.folders.batches import Batch, ImageEntry, Shard
from flax_vae.folders.stream import stream
from flax_vae.images import ImageScan, StorageError, pad_to_factor, to_float
from flax_vae.inference import CompileAhead
from flax_vae.ops import CompileClock


class Skips:
    """Counts skipped images, of this and of earlier starts.

    Attributes:
      most: Maximum number of skipped images.
      count: Number of skipped images so far.
    """

    def __init__(self, most: int):
        self.most, self.count = most, 0

    def add(self, *reasons: str) -> None:
        """Adds images that cannot be read.

        Args:
          reasons: One sentence for each image.

        Raises:
          DataError: If the number exceeds the maximum.
        """
        self.count += len(reasons)
        if reasons and self.count > self.most:
            them = "it" if self.count == 1 else f"these {self.count:,}"
            raise DataError(
                f"{shorten_sentences(reasons)}; with --skip-bad {self.count} the others are encoded without {them}"
            )


class BusyTime:
    """Measures how long the devices had a batch to compute, and how long programs were compiled.

    A device may compute one batch while the program of the next one is compiled.

    Attributes:
      busy: Seconds in which the devices had a batch whose program was compiled.
      compiling: Seconds that tracing and compiling programs took.
    """

    def __init__(self):
        self.busy, self.compiling, self._until = 0.0, 0.0, 0.0

    def started(self, begun: float, compiled: float) -> float:
        """Adds the time of compiling, if a batch needed it; returns the time at which its computation began.

        Args:
          begun: Time at which the program of the batch was called.
          compiled: Time at which a program was compiled last, of this batch or of an earlier one.
        """
        self.compiling += max(compiled - begun, 0.0)
        return max(begun, compiled)

    def ran(self, begun: float, ended: float) -> None:
        """Adds the time of a batch; batches end in the order in which they start."""
        self.busy += max(ended - max(begun, self._until), 0.0)
        self._until = ended


class _Job(NamedTuple):
    """A batch, its shard, and whether it is the last batch of the shard."""

    shard: int
    content: ShardContent
    batch: Batch
    last: bool


class _Source(NamedTuple):
    """An image that was read.

    Attributes:
      sha256: SHA-256 of the content; None if it could not be opened.
      views: Image as input of the model and, if `flip` is set, its mirror image; None if the image is damaged.
      reason: Error message of a damaged image.
    """

    sha256: bytes | None
    views: Float[np.ndarray, "f h w 3"] | None
    reason: str = ""


class _Good(NamedTuple):
    """An image that can be encoded; see `_Source`."""

    picture: ImageEntry
    sha256: bytes
    views: Float[np.ndarray, "f h w 3"]


class _Computed(NamedTuple):
    """A computation on the devices: its start, and entries and results of images and of mirror images."""

    begun: float
    latents: list[tuple[list[LatentEntry], dict[str, Array]]]


@dataclass(frozen=True)
class EncodePipeline:
    """Computes and writes shards.

    Attributes:
      found: Images of the source.
      encoding: Settings of the encoding.
      max_pixels: Number of pixels above which an image is computed alone, on several devices.
      encoder: Encoder of batches.
      write: Function that writes a shard, called with number and content, in order, in a separate thread.
      skips: Counter of skipped images.
    """

    found: ImageScan
    encoding: Encoding
    max_pixels: int
    encoder: LatentEncoder
    write: Callable[[int, ShardContent], None]
    skips: Skips

    def __call__(self, shards: Sequence[Shard], progress: Progress) -> BusyTime:
        """Computes and writes shards in order.

        Returns:
          Durations of computing and compiling.

        Raises:
          DataError: If too many images cannot be read.
          UserError: If a latent is not finite.
        """
        busy_time = BusyTime()
        batches = (batch for shard in shards for batch in shard.batches if not self._is_large(batch))

        def begin(threads: ThreadPoolExecutor, job: _Job) -> list[Future[_Source]]:
            coming = [threads.submit(self._read, job.batch, picture) for picture in job.batch.pictures]
            programs.top_up()  # while the files are read
            return coming

        def compute(job: _Job, coming: list[Future[_Source]]) -> _Computed:
            good = self._gather(job, coming)
            if not self._is_large(job.batch):
                programs.wait(job.batch.program)
            begun = time.monotonic()
            latents = self._compute(job.batch, good) if good else []
            programs.top_up()  # while the batch is computed
            return _Computed(busy_time.started(begun, clock.last), latents)

        def collect(threads: ThreadPoolExecutor, job: _Job, computed: _Computed) -> None:
            jax.block_until_ready([latents for _, latents in computed.latents])
            busy_time.ran(computed.begun, time.monotonic())
            self._keep(job, computed)
            progress.add(len(job.batch.pictures))

        sizes = (batch.program for batch in batches)
        with CompileClock() as clock, CompileAhead(self.encoder.compile_in, sizes) as programs:
            stream(self._jobs(shards), begin, compute, collect)
        busy_time.compiling += self.encoder.compiling
        return busy_time

    def _is_large(self, batch: Batch) -> bool:
        """Returns whether an image is computed alone, on several devices."""
        return batch.height * batch.width > self.max_pixels and len(self.encoder.devices) > 1

    def _jobs(self, shards: Sequence[Shard]) -> Iterator[_Job]:
        for shard in shards:
            content = ShardContent(ChannelStats.nothing(self.encoding.channels))
            for batch in shard.batches:
                yield _Job(shard.number, content, batch, batch is shard.batches[-1])

    def _read(self, batch: Batch, picture: ImageEntry) -> _Source:
        """Reads an image once, so that digest and pixels belong to equal content."""
        sha256 = None
        try:
            source, index = self.found.source, self.found.positions[picture.name]
            content = source.content(index)
            sha256 = hashlib.sha256(content).digest()
            pixels = source.decode(index, content)
            if pixels.shape[:2] != (picture.height, picture.width):
                # The image was replaced meanwhile, or is a PNG with its EXIF orientation after the pixels.
                raise DataError(
                    f"{source.printable_name(index)} is {pixels.shape[0]} x {pixels.shape[1]} pixels and was "
                    f"{picture.height} x {picture.width} by its header; save it again"
                )
        except StorageError:  # the image may be intact, so it must not be skipped
            raise
        except DataError as error:
            return _Source(sha256, None, str(error))
        # Mirror before padding, so that both are padded at the bottom and on the right.
        views = [pixels, pixels[:, ::-1]] if self.encoding.flip else [pixels]
        return _Source(sha256, to_float(np.stack([pad_to_factor(view, self.encoding.multiple) for view in views])))

    def _gather(self, job: _Job, coming: list[Future[_Source]]) -> list[_Good]:
        """Returns the images of a batch that can be read; counts the others."""
        good = []
        for picture, future in zip(job.batch.pictures, coming, strict=True):
            sha256, views, reason = future.result()
            if views is None or sha256 is None:
                self.skips.add(reason)
                job.content.skipped.append(Skip(picture.name, reason, None if sha256 is None else sha256.hex()))
            else:
                good.append(_Good(picture, sha256, views))
        return good

    def _compute(self, batch: Batch, good: list[_Good]) -> list[tuple[list[LatentEntry], dict[str, Array]]]:
        """Starts the computation of the images and of their mirror images."""
        computed = []
        for flipped in (False, True)[: 1 + self.encoding.flip]:
            entries = [
                LatentEntry(p.number, p.name, p.height, p.width, flipped, sha256, p.label, p.caption)
                for p, sha256, _ in good
            ]
            images = np.stack([one.views[int(flipped)] for one in good])
            numbers = np.array([2 * entry.number + flipped for entry in entries], np.uint32)
            if self._is_large(batch):
                latents = self.encoder.encode_across_devices(images, numbers)
            else:
                latents = self.encoder(batch.compiled_size, images, numbers)
            computed.append((entries, latents))
        return computed

    def _keep(self, job: _Job, computed: _Computed) -> None:
        """Adds results to the shard, and writes the shard if it is complete."""
        for entries, latents in computed.latents:
            stored = {part: np.asarray(latents[part])[: len(entries)] for part in self.encoding.parts}
            with np.errstate(over="ignore"):  # checked below
                stored = {part: values.astype(self.encoding.dtype) for part, values in stored.items()}
            self._check(entries, stored)
            job.content.add(entries, stored)
        if job.last:
            self.write(job.shard, job.content)

    def _check(self, entries: list[LatentEntry], stored: dict[str, np.ndarray]) -> None:
        for values in stored.values():
            bad = np.flatnonzero(~np.isfinite(values).all(axis=(1, 2, 3)))
            if len(bad):
                raise UserError(
                    f"the latent of {printable(entries[bad[0]].name)} is not finite in {self.encoding.dtype}; "
                    "check the weights, or compute and store in float32"
                )
