"""The same images as a folder, a tar, a Parquet table, ArrayRecord files and, if they are of one size, an array."""

import tarfile
from pathlib import Path

import numpy as np

from flax_vae.images import open_images

KINDS = ("folder", "tar", "parquet", "arrayrecord", "npz")


def pack(folder: Path, kind: str, into: Path) -> str:
    """Writes the image files of a folder of class folders in another way, in order; returns the address.

    Args:
      folder: Folder of image files.
      kind: One of `KINDS`.
      into: Folder for what is written.
    """
    source = open_images(str(folder))
    contents = [source.content(index) for index in range(len(source))]
    labels = [source.label(index) for index in range(len(source))]
    if kind == "folder":
        return str(folder)
    if kind == "tar":
        with tarfile.open(into / "images.tar", "w") as archive:
            for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                archive.add(path, path.relative_to(folder).as_posix())
        return str(into / "images.tar")
    if kind == "parquet":
        import pyarrow
        from pyarrow import parquet

        captions = [source.caption(index) for index in range(len(source))]
        images = [{"bytes": one, "path": None} for one in contents]
        table = pyarrow.table({"image": images, "label": labels, "caption": pyarrow.array(captions, pyarrow.string())})
        parquet.write_table(table, into / "images.parquet", row_group_size=100)
        return str(into / "images.parquet")
    if kind == "arrayrecord":
        from array_record.python.array_record_module import ArrayRecordWriter  # pyright: ignore

        writer = ArrayRecordWriter(str(into / "images.array_record"), "group_size:1")
        for content in contents:
            writer.write(content)
        writer.close()
        return str(into / "images.array_record")
    np.savez(into / "images.npz", images=np.stack([*source]), labels=np.array(labels))
    return str(into / "images.npz")
