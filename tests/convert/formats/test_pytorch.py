import collections
import functools
import io
import os
import pickle
import sys
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flax_vae.convert.errors import FileError
from flax_vae.convert.extras import install_command
from flax_vae.convert.formats.pytorch import read_pickle


class Code:
    """A pickle of it runs a command when it is read by pickle itself."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return (os.system, (f"touch {self.folder}/owned",))


class Stranger:
    pass


def nested(value: object, depth: int) -> dict:
    return {"x": nested(value, depth - 1) if depth else value}


def holds_itself(value: object) -> dict:
    content = {"a": value}
    content["b"] = content
    return content


def foreign(name: str) -> type:
    """A class that pickles under a name that nothing here can import."""
    module, _, attribute = name.rpartition(".")
    return type(attribute, (), {"__module__": module})


def save_foreign(path: Path, content: dict, *classes: type, **options) -> None:
    import torch

    with pytest.MonkeyPatch.context() as patch:
        for cls in classes:
            parts = cls.__module__.split(".")
            for depth in range(len(parts)):
                name = ".".join(parts[: depth + 1])
                patch.setitem(sys.modules, name, sys.modules.get(name) or type(sys)(name))
            setattr(sys.modules[cls.__module__], cls.__name__, cls)
        torch.save(content, path, **options)


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.mark.torch
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 1.6"])
def test_tensors_return_bit_for_bit(tmp_path, zipped):
    import torch

    bits = torch.randint(0, 2**15, (3, 4), dtype=torch.int16, generator=torch.Generator().manual_seed(0))
    dtypes = {
        torch.float16: np.float16,
        torch.bfloat16: ml_dtypes.bfloat16,
        torch.float32: np.float32,
        torch.float64: np.float64,
        torch.int64: np.int64,
        torch.uint8: np.uint8,
        torch.bool: np.bool_,
        torch.float8_e4m3fn: ml_dtypes.float8_e4m3fn,
        torch.float8_e5m2: ml_dtypes.float8_e5m2,
    }
    if not zipped:  # the format is older than these dtypes
        dtypes = {dtype: expected for dtype, expected in dtypes.items() if "float8" not in str(dtype)}
    tensors = {
        str(dtype): bits.clone().view(dtype)
        if dtype.itemsize == 2
        else bits.float().to(dtype)  # every kind of NaN in two bytes
        for dtype in dtypes
    }
    tensors |= {"transposed": bits.T, "part": bits[1:, ::2], "scalar": torch.tensor(3.5), "empty": torch.zeros(0, 3)}
    tensors |= {"parameter": torch.nn.Parameter(torch.ones(2)), "brain part": bits.clone().view(torch.bfloat16).T[1:]}
    torch.save(tensors, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    found = read_pickle(tmp_path / "a.pt")
    assert list(found) == sorted(tensors)
    for dtype, expected in dtypes.items():
        assert found[str(dtype)].dtype == expected
        assert found[str(dtype)].tobytes() == bytes(tensors[str(dtype)].contiguous().view(torch.uint8).numpy())
    assert same_bits(found["transposed"], bits.numpy().T)
    assert same_bits(found["part"], bits.numpy()[1:, ::2])
    assert same_bits(found["brain part"], bits.numpy().T[1:].view(ml_dtypes.bfloat16))
    assert found["scalar"] == 3.5 and found["empty"].shape == (0, 3) and found["parameter"].tolist() == [1, 1]
    assert not any(array.flags.writeable for array in found.values())


@pytest.mark.torch
def test_a_compressed_archive_is_read_and_not_mapped(tmp_path):
    import torch

    torch.save({"a": torch.arange(1000.0)}, tmp_path / "a.pt")
    with (
        zipfile.ZipFile(tmp_path / "a.pt") as archive,
        zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in archive.namelist():
            packed.writestr(name, archive.read(name))
    assert read_pickle(tmp_path / "b.pt")["a"].tolist() == list(range(1000))


@pytest.mark.torch
def test_lightning_is_unwrapped(tmp_path):
    import torch

    content = {
        "state_dict": collections.OrderedDict({"encoder.conv_in.bias": torch.ones(2), "decoder.x": torch.zeros(1)}),
        "epoch": 3,
        "global_step": 100,
        "pytorch-lightning_version": "1.4.2",
        "callbacks": {"x": {"best": torch.tensor(1.0)}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(5)}}}],
        "lr_schedulers": [],
    }
    torch.save(content, tmp_path / "a.ckpt")
    assert {name: array.tolist() for name, array in read_pickle(tmp_path / "a.ckpt").items()} == {
        "decoder.x": [0],
        "encoder.conv_in.bias": [1, 1],
    }


@pytest.mark.torch
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (lambda one: {"model_state_dict": {"a.b": one}, "epoch": 3, "optimizer": {"state": {}}}, {"a.b"}),
        (lambda one: {"checkpoint": {"model": {"a": one}}}, {"a"}),
        (lambda one: {"a": one, "step": 3, "b": None}, {"a"}),
        (lambda one: {"model": {"a": one}, "ema": {"a": one}, "step": 3}, {"model.a", "ema.a"}),
        (
            lambda one: {"state_dict": {"a": one}, "optimizer": {"state": {0: {"exp_avg": one}}}},
            {"state_dict.a", "optimizer.state.0.exp_avg"},
        ),
        (lambda one: {"encoder": {"conv_in": {"weight": one}}}, {"encoder.conv_in.weight"}),
    ],
    ids=range(6),
)
def test_dictionaries_of_dictionaries_are_named_by_both(tmp_path, content, expected):
    import torch

    torch.save(content(torch.ones(1)), tmp_path / "a.pt")
    assert set(read_pickle(tmp_path / "a.pt")) == expected


@pytest.mark.torch
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 1.6"])
def test_published_checkpoints_hold_classes_of_lightning(tmp_path, zipped):
    import torch

    # As the checkpoints of Stable Diffusion 1 and of latent-diffusion do: a class as a key, a numpy scalar, settings.
    callback = foreign("pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint")
    settings = foreign("omegaconf.dictconfig.DictConfig")
    filled = settings()
    filled.__dict__["_content"] = {"lr": 1e-4}
    content = {
        "state_dict": {"a": torch.ones(2)},
        "callbacks": {callback: {"best_model_score": np.float64(0.5), "monitor": "val"}},
        "hyper_parameters": filled,
    }
    save_foreign(tmp_path / "a.ckpt", content, callback, settings, _use_new_zipfile_serialization=zipped)
    assert read_pickle(tmp_path / "a.ckpt")["a"].tolist() == [1, 1]


@pytest.mark.torch
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 1.6"])
@pytest.mark.parametrize("place", ["alone", "beside", "bookkeeping"])
def test_code_is_never_run(tmp_path, place, zipped):
    import torch

    content = {
        "alone": Code(tmp_path),
        "beside": {"a": torch.ones(1), "b": Code(tmp_path)},
        "bookkeeping": {"state_dict": {"a": torch.ones(1)}, "callbacks": Code(tmp_path)},
    }[place]
    torch.save(content, tmp_path / "a.ckpt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(FileError, match=r"holds code or foreign objects \((posix|nt).system\), which are never"):
        read_pickle(tmp_path / "a.ckpt")
    assert sorted(os.listdir(tmp_path)) == ["a.ckpt"]


@pytest.mark.torch
def test_code_under_the_name_of_lightning_is_not_even_imported(tmp_path):
    import torch

    cls = foreign("pytorch_lightning.evil.Owner")
    cls.__reduce__ = lambda self: (cls, (f"touch {tmp_path}/owned",))
    cls.__new__ = lambda c, *args: (os.system(*args) if args else None, object.__new__(c))[1]
    cls.__init__ = lambda self, *args: None
    save_foreign(tmp_path / "a.ckpt", {"state_dict": {"a": torch.ones(1)}, "callbacks": cls()}, cls)
    assert read_pickle(tmp_path / "a.ckpt")["a"].tolist() == [1]
    assert sorted(os.listdir(tmp_path)) == ["a.ckpt"]
    save_foreign(tmp_path / "b.ckpt", {"a": torch.ones(1), "b": cls()}, cls)
    assert read_pickle(tmp_path / "b.ckpt")["a"].tolist() == [1]
    assert sorted(os.listdir(tmp_path)) == ["a.ckpt", "b.ckpt"]


@pytest.mark.torch
@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_others_are_refused(tmp_path, protocol):
    for content in ({"a": np.ones(2)}, Code(tmp_path), Stranger(), {"a": 1}):
        (tmp_path / "a.bin").write_bytes(pickle.dumps(content, protocol))
        with pytest.raises(
            FileError, match="a.bin (is not a complete PyTorch checkpoint|holds code or foreign objects)"
        ):
            read_pickle(tmp_path / "a.bin")
    assert sorted(os.listdir(tmp_path)) == ["a.bin"]


@pytest.mark.torch
@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (lambda torch: [torch.ones(1)], "holds a list; expected a dictionary of named tensors"),
        (lambda torch: torch.ones(1), "holds a Tensor; expected a dictionary"),
        (lambda torch: {"step": 3}, "holds no named tensors, only:\n  'step': a int\nsave only the dictionary"),
        (lambda torch: {"model": {}, "list": [torch.ones(1)]}, "'model': a dictionary of 0\n  'list': a list"),
        (lambda torch: {"a": {"b": torch.ones(1)}, "a.b": torch.ones(1)}, "two tensors of the name 'a.b'"),
        (lambda torch: {"\ud800": torch.ones(1)}, r"a name that is not valid text: '.ud800'"),
        (lambda torch: nested(torch.ones(1), 9), "nested more than 8 deep"),
        (lambda torch: holds_itself(torch.ones(1)), "nested more than 8 deep"),
        (lambda torch: {"a": torch.ones(2, 2).to_sparse()}, r"'a': a Tensor \(torch.sparse_coo\)"),
        (lambda torch: {"a": torch.ones(1, device="meta")}, "'a': a Tensor"),
        (
            lambda torch: {"a": torch.ones(1, dtype=torch.complex32)},
            "'a' has dtype torch.complex32, which numpy cannot",
        ),
        (lambda torch: {str(i): i for i in range(30)}, "and 10 more"),
    ],
    ids=range(12),
)
@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.filterwarnings("ignore:Sparse")
def test_what_holds_no_arrays_is_listed(tmp_path, content, complaint):
    import torch

    torch.save(content(torch), tmp_path / "a.pt")
    with pytest.raises(FileError, match=complaint):
        read_pickle(tmp_path / "a.pt")


@pytest.mark.torch
def test_the_words_of_pytorch_that_advise_to_run_code_are_not_passed_on(tmp_path):
    (tmp_path / "a.pt").write_bytes(b"\x01 neither a pickle nor an archive")
    with pytest.raises(FileError, match=r"complete PyTorch checkpoint \(its pickle cannot be read\)") as caught:
        read_pickle(tmp_path / "a.pt")
    assert "weights_only" not in str(caught.value)


@pytest.mark.torch
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 1.6"])
def test_a_file_cut_short_is_refused(tmp_path, zipped):
    import torch

    torch.save({"a": torch.ones(3), "b": torch.zeros(2)}, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    whole = (tmp_path / "a.pt").read_bytes()
    for length in range(0, len(whole), 1 if len(whole) < 700 else 7):
        (tmp_path / "a.pt").write_bytes(whole[:length])
        # Cut within a name, that name is another one.
        with pytest.raises(
            FileError, match="is not a complete PyTorch checkpoint .*copy or write it again|foreign objects"
        ):
            read_pickle(tmp_path / "a.pt")


@functools.cache
def saved(zipped: bool) -> bytes:
    import torch

    file = io.BytesIO()
    torch.save({"a": torch.ones(3), "b": torch.zeros(2, 3).T}, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


@pytest.mark.torch
@given(st.data())
def test_mutated_files_are_refused_in_one_way(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("files") / "a.pt"
    content = bytearray(saved(data.draw(st.booleans(), "zipped")))
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(content) - 1))
        content[position : position + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    path.write_bytes(content)
    try:
        for array in read_pickle(path).values():
            array.tobytes()
    except FileError as error:
        assert str(path) in str(error)


@pytest.mark.torch
@given(content=st.binary(max_size=200))
def test_random_bytes_are_refused_in_one_way(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("files") / "a.pt"
    path.write_bytes(content)
    with pytest.raises(FileError):
        read_pickle(path)


def test_without_pytorch_the_remedy_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.ckpt").write_bytes(b"PK")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(FileError, match="only PyTorch can read; use a safetensors file") as caught:
        read_pickle(tmp_path / "a.ckpt")
    assert str(caught.value).endswith(install_command("torch"))


def test_missing_files_and_folders_are_told_apart(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent does not exist"):
        read_pickle(tmp_path / "absent")
    with pytest.raises(FileError, match="is a folder"):
        read_pickle(tmp_path)
