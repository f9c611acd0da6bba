"""Distributes batches over the devices of this process; each computes some of the images."""

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, Self, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

S = TypeVar("S")

_Shapes = tuple[tuple[tuple[int, ...], np.dtype[Any]], ...]

_COMPILING = 2  # programs that are being compiled or wait for it


class DataParallel:
    """A function of parameters and a batch, compiled once for each image size.

    Attributes:
      devices: Devices that compute.
      params: Parameters, replicated on all devices.
      compiling: Seconds that `compile_in` took in all.
    """

    def __init__(self, function: Callable[..., Any], params: dict[str, Any], devices: Sequence[Any]):
        """Places the parameters.

        Args:
          function: Function of the parameters and of arrays; arguments and results have the images as first axis.
          params: Parameters of the model.
          devices: `jax.Device`s of this process.
        """
        self.devices = tuple(devices)
        mesh = Mesh(np.asarray(self.devices), ("images",))
        self._batch_sharding = NamedSharding(mesh, PartitionSpec("images"))
        self.params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
        self._run = jax.jit(function, out_shardings=self._batch_sharding)  # inputs keep their shardings
        self.compiling = 0.0
        self._programs: dict[_Shapes, Future[Any]] = {}

    def __call__(self, compiled_size: int, *arrays: np.ndarray) -> Any:
        """Starts the computation; returns its results, which may have more images than the arguments.

        Args:
          compiled_size: Batch size of the compiled program; smaller batches are filled up with their first image.
          arrays: Arrays with at most `compiled_size` images.

        Returns:
          Results of the computation, on the devices.
        """
        compiled_size = self._shared(compiled_size)
        placed = jax.device_put([_filled(array, compiled_size) for array in arrays], self._batch_sharding)
        program = self._programs.get(_shapes(placed))
        run = self._run if program is None else program.result()
        return run(self.params, *placed)

    def compile_in(self, thread: ThreadPoolExecutor, compiled_size: int, *images: jax.ShapeDtypeStruct) -> Future[Any]:
        """Starts to compile a program in another thread; calls with such batches wait for it and use it.

        Traces it in this thread, to which settings of JAX may be limited.

        Args:
          thread: Executor of a single thread.
          compiled_size: Batch size of the program; see `__call__`.
          images: Shape and dtype of one image of each array.

        Returns:
          Future that is done when the program is compiled.
        """
        size = self._shared(compiled_size)
        like = [jax.ShapeDtypeStruct((size, *one.shape), one.dtype, sharding=self._batch_sharding) for one in images]
        begun = time.monotonic()
        lowered = self._run.lower(self.params, *like)
        traced = time.monotonic() - begun

        def compiled() -> Any:
            begun = time.monotonic()
            program = lowered.compile()
            self.compiling += traced + time.monotonic() - begun
            return program

        program = self._programs[_shapes(like)] = thread.submit(compiled)
        return program

    def _shared(self, compiled_size: int) -> int:
        """Returns the least batch size, at least that one, which the devices share evenly."""
        return -(-compiled_size // len(self.devices)) * len(self.devices)


class CompileAhead(Generic[S]):
    """Compiles programs in a thread of its own, in the order in which they are needed, while others are used.

    A context manager; at its end, programs that were not begun are left out.
    """

    def __init__(self, start: Callable[[ThreadPoolExecutor, S], Future[Any]], sizes: Iterable[S]):
        """Compiles nothing yet.

        Args:
          start: Function that starts to compile the program of a size in a thread.
          sizes: Sizes in the order of need; repetitions are left out.
        """
        self._start, self._sizes = start, iter(dict.fromkeys(sizes))
        self._programs: dict[S, Future[Any]] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="compile")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def top_up(self) -> None:
        """Starts programs as long as fewer than a few are being compiled; to be called often."""
        while sum(not program.done() for program in self._programs.values()) < _COMPILING and self._start_next():
            pass

    def wait(self, size: S) -> None:
        """Waits for the program of a size.

        Args:
          size: Size of a batch.

        Raises:
          Exception: The exception that ended compiling it.
        """
        while size not in self._programs and self._start_next():
            pass
        self._programs[size].result()

    def _start_next(self) -> bool:
        for size in self._sizes:
            self._programs[size] = self._start(self._thread, size)
            return True
        return False


def rows_of(devices: Sequence[Any], height: int, factor: int) -> Sequence[Any]:
    """Returns as many devices as possible over which the rows of an image can be split evenly.

    Args:
      devices: Devices to choose from.
      height: Height of the image, a multiple of `factor`.
      factor: Number of rows that must stay on one device.
    """
    count = max(count for count in range(1, len(devices) + 1) if height // factor % count == 0)
    return devices[:count]


def _filled(array: np.ndarray, compiled_size: int) -> np.ndarray:
    if len(array) == compiled_size:
        return array
    return np.concatenate([array, np.repeat(array[:1], compiled_size - len(array), axis=0)])


def _shapes(arrays: Sequence[Any]) -> _Shapes:
    return tuple((array.shape, np.dtype(array.dtype)) for array in arrays)
