"""Tests of Parquet tables: columns by name, as Hugging Face stores them and plain."""

import io

import numpy as np
import pytest
from PIL import Image

from flax_vae.images.read import StorageError
from flax_vae.images.sources.open import open_images
from flax_vae.train.errors import DataError

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

PIXELS = [np.full((8, 8 + number, 3), 40 * number, np.uint8) for number in range(5)]


def encoded(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def write(path, **columns):
    parquet.write_table(
        pyarrow.table({"image": [encoded(image) for image in PIXELS], **columns}), path, row_group_size=2
    )
    return str(path)


def test_labels_and_captions_are_columns(tmp_path):
    address = write(
        tmp_path / "x.parquet", label=[3, None, -1, 0, 7], text=["a", "b", None, "d", "é"], n=[5, 6, 7, 8, 9]
    )
    source = open_images(address)
    assert [source.label(index) for index in range(5)] == [3, None, None, 0, 7]
    assert [source.caption(index) for index in range(5)] == ["a", "b", None, "d", "é"]
    assert (source.classes, source.label_notes) == ((), ("labels are the column label",))
    assert open_images(f"{address},label=n").label(4) == 9
    categories = write(tmp_path / "y.parquet", caption=pyarrow.array(list("abcab")).dictionary_encode())
    assert [open_images(categories).caption(index) for index in range(5)] == list("abcab")
    for index in reversed(range(5)):
        np.testing.assert_array_equal(source[index], PIXELS[index])


def test_a_table_of_hugging_face_has_names_of_classes_and_the_labels_of_their_reader(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = {
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=["cat", "dog"]),
        "caption": datasets.Value("string"),
    }
    rows = {
        "image": [{"bytes": encoded(image), "path": None} for image in PIXELS],
        "label": [0, 1, 1, -1, 0],
        "caption": list("abcde"),
    }
    data = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    data.to_parquet(tmp_path / "x.parquet")
    data.save_to_disk(tmp_path / "saved")
    for address in (str(tmp_path / "x.parquet"), f"hf:{tmp_path / 'saved'}"):
        source = open_images(address)
        assert source.classes == ("cat", "dog")
        assert [source.label(index) for index in range(5)] == [0, 1, 1, None, 0]
        assert [source.caption(index) for index in range(5)] == list("abcde")
        np.testing.assert_array_equal(source[3], PIXELS[3])


def test_what_is_wrong_with_a_table_is_said(tmp_path):
    address = write(tmp_path / "x.parquet", label=list("abcde"), other=[b"x"] * 5, when=[1.5] * 5)
    assert open_images(address).label(0) is None
    for option, message in {
        "column=picture": "no column 'picture' of encoded images.*image, other; name one with column=",
        "label=lable": "no column 'lable' of labels; did you mean 'label'",
        "label=when": "has the column 'when' of double; labels are integers",
        "caption=when": "no column 'when' of text; expected one of label",
        "colum=image": "has the option 'colum=image'; did you mean 'column'",
    }.items():
        with pytest.raises(DataError, match=message):
            open_images(f"{address},{option}")
    with pytest.raises(DataError, match="none.parquet cannot be read as Parquet"):
        open_images(str(tmp_path / "none.parquet"))
    (tmp_path / "bad.parquet").write_bytes(b"hello")
    with pytest.raises(DataError, match="bad.parquet cannot be read as Parquet"):
        open_images(str(tmp_path / "bad.parquet"))
    write(tmp_path / "y.parquet")
    with pytest.raises(DataError, match="y.parquet has other columns than .*x.parquet"):
        open_images(str(tmp_path / "{x,y}.parquet"))
    parquet.write_table(pyarrow.table({"n": [1]}), tmp_path / "n.parquet")
    with pytest.raises(DataError, match="n.parquet has no column 'image' of encoded images.*: none"):
        open_images(str(tmp_path / "n.parquet"))


def test_damaged_rows_are_named_and_damaged_groups_end_it(tmp_path):
    parquet.write_table(pyarrow.table({"image": [encoded(PIXELS[0]), None, b"hello"]}), tmp_path / "x.parquet")
    source = open_images(str(tmp_path / "x.parquet"))
    for index, message in {1: r"x.parquet\[1\] is empty", 2: r"x.parquet\[2\] is not an image"}.items():
        with pytest.raises(DataError, match=message):
            source.size(index)
    address = write(tmp_path / "y.parquet")
    source, content = open_images(address), bytearray((tmp_path / "y.parquet").read_bytes())
    content[4:60] = bytes(56)
    (tmp_path / "y.parquet").write_bytes(content)
    with pytest.raises(StorageError, match=r"y.parquet\[0\] cannot be read .*start again"):
        source[0]
