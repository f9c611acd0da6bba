"""Prepares batches ahead: while a step runs, the next batches are decoded, converted and sent to the devices."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import numpy as np
from jaxtyping import Float

from flax_vae.convert.console import available_cpus
from flax_vae.convert.errors import ArgumentError
from flax_vae.images import to_float
from flax_vae.train.data.photographs import Photographs

T = TypeVar("T")


class Batches(Generic[T]):
    """Iterates over the batches of consecutive updates; each equals that of `Photographs.batch` bit for bit.

    A pool of threads decodes crops (Pillow and NumPy release the GIL), and one more thread passes them to `place`.
    The only state is the number of the next update, so a run that resumes starts a new iterator there.  Use it as a
    context manager, or call `close`; the threads also end with the last batch and with the first error.

      with Batches(photographs, seed=0, first_step=start, steps=1_000, batch_size=8, place=parallel.place_batch) as it:
          for batch in it: ...
    """

    def __init__(
        self,
        photographs: Photographs,
        seed: int,
        first_step: int,
        steps: int,
        batch_size: int,
        place: Callable[[Float[np.ndarray, "b s s 3"]], T],
        share: slice = slice(None),  # noqa: B008 - slices cannot change
        workers: int | None = None,
        ahead: int = 2,
    ):
        """Starts reading with the first batch.

        Args:
          photographs: Source of the crops.
          seed: Seed of the crops.
          first_step: Number of the first update.
          steps: Number after that of the last update: there are `steps - first_step` batches.
          batch_size: Examples of an update, over all processes together.
          place: Function called once for each batch, in order and in one thread, such as `Parallel.place_batch`.
          share: Examples that this process makes, of `range(batch_size)`.
          workers: Number of threads that decode; None uses one for each CPU that this process may use.
          ahead: Number of batches that are prepared while the caller works on one; each takes memory wherever `place`
            puts it.

        Raises:
          ValueError: If `workers` or `ahead` is less than 1.
        """
        workers = available_cpus() if workers is None else workers
        for name, value in {"workers": workers, "ahead": ahead}.items():
            if value < 1:
                raise ArgumentError(f"{name}={value!r} must be at least 1", field=name, value=value)
        self._photographs, self._seed = photographs, seed
        self._next, self._end = first_step, steps
        self._indices = range(batch_size)[share]
        self._place, self._ahead = place, ahead
        self._coming: deque[Future[T]] = deque()
        self._decoders = ThreadPoolExecutor(workers, thread_name_prefix="decode")
        self._placer = ThreadPoolExecutor(1, thread_name_prefix="place")

    def __iter__(self) -> "Batches[T]":
        return self

    def __next__(self) -> T:
        try:
            self._top_up(1)
            if not self._coming:
                raise StopIteration
            coming = self._coming.popleft()
            self._top_up(self._ahead)
            return coming.result()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Batches[T]":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the iteration and all threads, after the crops that they are working on."""
        self._next = self._end
        self._coming.clear()
        # The decoders end first: the placer may wait for crops, and stops when they are cancelled.
        self._decoders.shutdown(cancel_futures=True)
        self._placer.shutdown(cancel_futures=True)

    def _top_up(self, count: int) -> None:
        while len(self._coming) < count and self._next < self._end:
            # A new array for each batch: on a CPU, JAX may keep using its memory without a copy.
            batch = np.empty((len(self._indices), *self._photographs.crop_shape), np.float32)
            crops = [
                self._decoders.submit(self._crop, batch, row, self._next, index)
                for row, index in enumerate(self._indices)
            ]
            self._coming.append(self._placer.submit(self._finish, batch, crops))
            self._next += 1

    def _crop(self, batch: Float[np.ndarray, "b s s 3"], row: int, step: int, index: int) -> None:
        batch[row] = to_float(self._photographs.crop(self._seed, step, index))

    def _finish(self, batch: Float[np.ndarray, "b s s 3"], crops: list[Future[None]]) -> T:
        for crop in crops:
            crop.result()
        return self._place(batch)
