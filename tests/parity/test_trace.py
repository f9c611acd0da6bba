"""The commands `python -m flax_vae.trace` and `python -m torch_ref.trace`: arrays of equal names that agree."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import flax_vae.trace
import torch_ref.trace
from flax_vae.convert.cli.run_both import difference, layer_differences
from flax_vae.convert.console import TraceFlags
from flax_vae.convert.weights import save_folder
from tests.flax_vae.random_models import PLAIN
from tests.parity.agree import random_state_dict

PARAMS = {
    "linear time, grey": replace(PLAIN, ch_mult=(1,), time_emb_dim=10, in_channels=1, out_ch=2),
    "sinusoidal time": replace(PLAIN, ch_mult=(1,), time_emb_dim=12, time_embedding="sinusoidal"),
}


@pytest.mark.parametrize("name", PARAMS)
def test_both_write_arrays_of_equal_names_that_agree(tmp_path, name):
    params = PARAMS[name]
    state_dict = random_state_dict(params, "float32")
    save_folder(tmp_path / "model", params, state_dict)
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (9, 7, 3), np.uint8)).save(tmp_path / "picture.png")
    flags = TraceFlags(*(tmp_path / name for name in ("model", "picture.png", "flax.npz", "exact_flax.npz")))
    flax_vae.trace.write_trace(flags)
    torch_ref.trace.write_trace(replace(flags, out=tmp_path / "torch.npz", exact=tmp_path / "exact_torch.npz"))
    with np.load(tmp_path / "flax.npz") as ours, np.load(tmp_path / "torch.npz") as theirs:
        names = {key.rpartition(".")[0] for key in state_dict} | {"latents", "images", "device"}
        assert set(ours) == set(theirs) == names
        assert theirs["images"].shape == (1, params.out_ch, 9, 7)
        layers = layer_differences(params, ours, theirs)
        assert len(layers) == len(ours) - 3 and max(apart for _, apart in layers) < 1e-4
        assert difference(ours["images"], theirs["images"]) < 1e-4
    with np.load(tmp_path / "exact_flax.npz") as ours, np.load(tmp_path / "exact_torch.npz") as theirs:
        assert set(ours) == set(theirs) == names and ours["images"].dtype == theirs["images"].dtype == np.float64
        assert max(apart for _, apart in layer_differences(params, ours, theirs)) < 1e-10


def test_the_names_and_their_order_are_those_of_twins():
    ours, theirs = (vars(module) for module in (flax_vae.trace, torch_ref.trace))

    def defined(module):
        return [name for name, value in module.items() if getattr(value, "__module__", None) == module["__name__"]]

    assert [name for name in defined(ours) if not name.startswith("_")] == defined(theirs)
