"""The protocol of a format of shards, and the shards that `LatentDataset` reads."""

from abc import abstractmethod
from pathlib import Path
from typing import Protocol

from flax_vae.convert.latents.index import Storage, shard_file
from flax_vae.convert.latents.shard import ShardContent, ShardNotes, read_notes, read_sources, write_shard


class ShardStorage(Protocol):
    """Writes shards to files of one format, and reads what resuming needs.

    A shard exists when its file, `file(number)`, does; that file is written last.

    Attributes:
      storage: Name of the format.
      one_size: Whether all latents of a shard have one size.
    """

    storage: Storage
    one_size: bool = False

    @property
    @abstractmethod
    def files(self) -> str:
        """Regular expression of the names of all files that may be written."""

    @abstractmethod
    def file(self, number: int) -> str:
        """Returns the name of the file that is written last.

        Args:
          number: Number of the shard.
        """

    def others(self, folder: Path, number: int) -> list[str]:
        """Returns the names of the other files of a shard, as that file lists them.

        Args:
          folder: Folder of the data set.
          number: Number of the shard.

        Raises:
          FileError: If that file is damaged.
        """
        return []

    @abstractmethod
    def require(self, dtype: str) -> None:
        """Checks that the format can be written.

        Args:
          dtype: Dtype of the stored values.

        Raises:
          ArgumentError: If the format has no such dtype.
          FileError: If a package is not installed.
        """

    @abstractmethod
    def write(self, folder: Path, number: int, content: ShardContent, plan: str) -> None:
        """Writes a shard; see `flax_vae.convert.latents.write_shard`.

        Args:
          folder: Folder of the data set.
          number: Number of the shard.
          content: Latents and entries.
          plan: Digest of the plan that the shard is a part of.
        """

    @abstractmethod
    def notes(self, folder: Path, number: int) -> ShardNotes:
        """Reads the notes on a shard, and checks that its files have their lengths.

        Args:
          folder: Folder of the data set.
          number: Number of the shard.

        Returns:
          Notes on the shard.

        Raises:
          FileNotFoundError: If the shard does not exist.
          FileError: If it is incomplete.
        """

    @abstractmethod
    def sources(self, folder: Path, number: int) -> dict[str, str]:
        """Reads all of a shard, and returns the SHA-256 of each image file in it, in hexadecimal, by name.

        Args:
          folder: Folder of the data set.
          number: Number of the shard.

        Returns:
          SHA-256 by name of the image.

        Raises:
          FileNotFoundError: If the shard does not exist.
          FileError: If a file was changed after it was written.
        """


class SafetensorsShards(ShardStorage):
    """Shards that `LatentDataset` reads; see `flax_vae.convert.latents.index`."""

    storage: Storage = "safetensors"

    @property
    def files(self) -> str:
        """Regular expression of the names of the shards."""
        return r"latents-\d{5,}\.safetensors"

    def file(self, number: int) -> str:
        """Returns the name of a shard."""
        return shard_file(number)

    def require(self, dtype: str) -> None:
        """Does nothing: the format has every dtype."""

    def write(self, folder: Path, number: int, content: ShardContent, plan: str) -> None:
        """Writes a shard."""
        write_shard(folder, number, content, plan)

    def notes(self, folder: Path, number: int) -> ShardNotes:
        """Reads the header of a shard."""
        return read_notes(folder / shard_file(number))

    def sources(self, folder: Path, number: int) -> dict[str, str]:
        """Reads all of a shard."""
        return read_sources(folder / shard_file(number))
