"""What is not installed: every command ends in one line, with a command that installs it from this clone."""

import importlib.metadata
import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from flax_vae.convert import extras
from flax_vae.convert.extras import EXTRAS, REQUIRED, explain_missing, install_command, needed

ROOT = Path(__file__).parents[2]


def without(modules, command, words, cwd):
    """The end of a command in an interpreter that cannot find these modules."""
    package, name = command
    code = f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {set(modules)!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
sys.argv[0] = {name!r}
from {package}.__main__ import main
sys.exit(main())
"""
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=cwd, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout, done.stderr


FLAX_VAE = ("flax_vae", "flax-vae")
TRAINER = ("flax_vae.train", "flax-vae-train")
CONVERT = ("flax_vae.convert", "flax-vae-convert")


@pytest.mark.parametrize(
    ("missing", "command", "words", "named", "extra"),
    [
        (("PIL",), FLAX_VAE, "encode in out --model m", "PIL", ""),
        (("PIL",), FLAX_VAE, "reconstruct x.png --model m", "PIL", ""),
        (("optax",), TRAINER, "--dry-run", "optax", ""),
        (("PIL",), TRAINER, "eval m --data d", "PIL", ""),
        (("libtpu",), TRAINER, "plan --topology v5e:2x2", "the TPU compiler", "tpu"),
        (("torch",), CONVERT, "verify m --run x.png", "PyTorch", "torch"),
        (("torch",), CONVERT, "inspect a.ckpt", "PyTorch", "torch"),
        (("huggingface_hub",), CONVERT, "inspect hf:a/b", "huggingface_hub", "hub"),
    ],
)
def test_a_command_names_what_is_missing_in_one_line_and_leaves_nothing(
    tmp_path, missing, command, words, named, extra
):
    (tmp_path / "a.ckpt").write_bytes(b"PK")
    before = sorted(tmp_path.iterdir())
    if "verify" in words:
        import numpy as np

        from flax_vae.convert import PRESETS, expand
        from flax_vae.convert.weights.folder import save_folder

        params = PRESETS["tiny"]
        save_folder(
            tmp_path / "m", params, {row.theirs: np.zeros(row.torch_shape, np.float32) for row in expand(params)}
        )
        before = sorted(tmp_path.iterdir())
    status, out, err = without(missing, command, words.split(), tmp_path)
    assert (status, out) == (1, ""), err
    assert err.count("\n") == 1, err
    assert err.startswith(command[1])
    assert named in err
    assert re.search(rf"pip install .*\[{extra}\]'$" if extra else r"pip install [^\[\]]*$", err.rstrip()), err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("command", [FLAX_VAE, TRAINER, CONVERT], ids=lambda command: command[1])
def test_help_needs_none_of_them(tmp_path, command):
    status, out, err = without({*EXTRAS, "PIL", "jax", "optax", "orbax"}, command, ["--help"], tmp_path)
    assert (status, err) == (0, "")
    assert "usage" in out


def test_the_reference_names_what_it_is_written_in(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] in ("torch", "torch_ref")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=re.escape(install_command("torch"))):
        import torch_ref  # noqa: F401


def test_every_extra_is_one_that_there_is():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(EXTRAS.values()) <= project["optional-dependencies"].keys()
    modules = {"pillow": "PIL", "ruamel.yaml": "ruamel", "orbax-checkpoint": "orbax"}
    required = {re.split("[<>=]", each)[0] for each in project["dependencies"]}
    assert {modules.get(name, name) for name in required} <= REQUIRED


def test_a_defect_is_not_called_a_missing_extra():
    assert explain_missing(ImportError("cannot import name 'x'", name="flax_vae.images.read")) is None
    assert explain_missing(ImportError("x")) is None
    sentence = explain_missing(ModuleNotFoundError("No module named 'torch'", name="torch"))
    assert sentence == f"this needs torch (No module named 'torch'): {install_command('torch')}"
    sentence = explain_missing(ModuleNotFoundError("No module named 'PIL'", name="PIL"))
    assert sentence == f"this needs PIL (No module named 'PIL'): {install_command()}"


def test_needed_changes_no_other_error():
    with pytest.raises(ZeroDivisionError), needed("x", "torch", raises=ValueError):
        _ = 1 / 0
    beginning = r"^x needs y \(No module named 'a_module_that_nobody_has'\): "
    with pytest.raises(ValueError, match=beginning), needed("x needs y", "torch", raises=ValueError):
        import a_module_that_nobody_has  # noqa: F401


class TestTheCommandThatInstalls:
    """Wherever this package came from."""

    @pytest.fixture(autouse=True)
    def pip(self, monkeypatch):
        monkeypatch.setattr(extras, "pip_command", lambda: "pip install")

    @pytest.fixture
    def installed(self, monkeypatch, tmp_path):
        """Says what pip wrote down of a package that is no clone."""

        def install(origin):
            monkeypatch.setattr(extras, "__file__", str(tmp_path / "site-packages" / "convert" / "extras.py"))
            text = None if origin is None else json.dumps(origin)
            distribution = type("Distribution", (), {"read_text": lambda self, name: text})()
            monkeypatch.setattr(importlib.metadata, "distribution", lambda name: distribution)

        return install

    @pytest.fixture
    def clone(self, monkeypatch, tmp_path):
        """Makes the package one that lies in a clone: these tests themselves may run on a wheel."""
        folder = tmp_path / "clone"
        (folder / "convert").mkdir(parents=True)
        (folder / "pyproject.toml").touch()
        monkeypatch.setattr(extras, "__file__", str(folder / "convert" / "extras.py"))
        return folder

    def test_a_clone_in_which_one_stands(self, monkeypatch, clone):
        monkeypatch.chdir(clone)
        assert install_command() == "pip install -e ."
        assert install_command("hub") == "pip install -e '.[hub]'"
        assert install_command("torch", "hub") == "pip install -e '.[torch,hub]'"

    def test_a_clone_elsewhere(self, monkeypatch, tmp_path, clone):
        monkeypatch.chdir(tmp_path)
        assert shlex.split(install_command("hub")) == ["pip", "install", "-e", f"{clone}[hub]"]

    def test_installed_from_a_clone(self, installed, tmp_path):
        folder = tmp_path / "a clone's"
        folder.mkdir()
        installed({"url": folder.as_uri(), "dir_info": {}})
        assert shlex.split(install_command("hub")) == ["pip", "install", f"{folder}[hub]"]

    def test_installed_from_a_repository(self, installed):
        installed({"url": "https://host/x.git", "vcs_info": {"vcs": "git", "commit_id": "1"}})
        assert install_command("tpu") == "pip install 'flax-vae[tpu] @ git+https://host/x.git'"

    @pytest.mark.parametrize("origin", [None, {"url": "file:///gone/for/ever", "dir_info": {}}])
    def test_installed_from_an_index(self, installed, origin):
        installed(origin)
        assert install_command("tpu") == "pip install 'flax-vae[tpu]'"


def test_pip_is_that_of_this_interpreter(monkeypatch):
    folder = Path(sys.executable).parent
    monkeypatch.setattr(extras, "is_installed", lambda module: True)
    monkeypatch.setattr("shutil.which", lambda name: str(folder / "pip"))
    assert extras.pip_command() == "pip install"
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/pip")
    assert shlex.split(extras.pip_command()) == [sys.executable, "-m", "pip", "install"]
    monkeypatch.setattr(extras, "is_installed", lambda module: False)
    assert shlex.split(extras.pip_command()) == ["uv", "pip", "install", "--python", sys.executable]
