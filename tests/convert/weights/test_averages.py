"""The moving averages of LDM's checkpoints: taken by default, raw weights on request, and refused in part."""

import numpy as np
import pytest

from flax_vae.convert import PRESETS, expand
from flax_vae.convert.errors import FileError
from flax_vae.convert.formats.safetensors import write_tensors
from flax_vae.convert.weights.averages import choose_in_ldm
from flax_vae.convert.weights.load import load_weights
from flax_vae.convert.weights.open import open_weights

TINY = PRESETS["tiny"]
PREFIXES = ("", "first_stage_model.")


def checkpoint(prefix: str, parts: tuple[str, ...] = ("encoder", "decoder")) -> dict[str, np.ndarray]:
    """What LDM's trainer saves: ones, their averages, which are twos, and what belongs to the losses."""
    weights = {row.theirs: np.ones(row.torch_shape, np.float32) for row in expand(TINY, "ldm")}
    losses = {"loss.logvar": np.ones(()), "loss.discriminator.main.0.weight": np.ones((4, 3))}
    averages = {
        "model_ema." + name.replace(".", ""): 2 * array
        for name, array in (weights | losses).items()
        if name.startswith((*parts, "loss"))
    }
    numbers = {"model_ema.decay": np.array(0.999), "model_ema.num_updates": np.array(7)}
    return {prefix + name: array for name, array in (weights | losses | averages | numbers).items()}


@pytest.mark.parametrize("prefix", PREFIXES)
def test_the_average_is_taken_unless_the_raw_weights_are_asked_for(tmp_path, prefix):
    path = tmp_path / "vae.safetensors"
    write_tensors(path, checkpoint(prefix))
    weights = load_weights(path, TINY)
    assert len(weights.tensors) == len(expand(TINY))
    assert all((np.asarray(tensor) == 2).all() for tensor in weights.tensors.values())
    raw = load_weights(path, TINY, raw_weights=True)
    assert all((np.asarray(tensor) == 1).all() for tensor in raw.tensors.values())
    assert [open_weights(path, raw_weights=asked).averaged for asked in (False, True)] == [True, False]


def test_a_part_that_was_not_trained_keeps_its_weights():
    found, averaged = choose_in_ldm("vae.ckpt", checkpoint("", ("decoder",)), raw_weights=False)
    assert averaged
    assert {name: float(np.asarray(found[f"{name}.conv_in.bias"])[0]) for name in ("encoder", "decoder")} == {
        "encoder": 1,
        "decoder": 2,
    }


def test_the_average_of_another_model_is_left_alone():
    tensors = checkpoint("first_stage_model.", ()) | {
        "model.diffusion_model.out.weight": np.ones(2),
        "model_ema.diffusion_modeloutweight": np.ones(2),
    }
    found, averaged = choose_in_ldm("sd.ckpt", tensors, raw_weights=False)
    assert averaged is None
    assert found is tensors


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"model_ema.encoderconv_inweight": None}, "lacks 1 weights, such as encoder.conv_in"),
        (
            {"model_ema.encoderconv_inweight": np.ones(3)},
            r"holds encoder.conv_in.weight of shape \(3,\), the weights ",
        ),
        ({"model_ema.encoderconv_extra": np.ones(3)}, r"holds encoderconv_extra of shape \(3,\), the weights none"),
    ],
)
def test_an_average_that_does_not_fit_is_refused_and_the_remedy_named(tmp_path, change, complaint):
    tensors = {name: array for name, array in (checkpoint("") | change).items() if array is not None}
    path = tmp_path / "vae.safetensors"
    write_tensors(path, tensors)
    with pytest.raises(FileError, match=rf"vae.safetensors: the moving average {complaint}.*--raw-weights"):
        open_weights(path)
    assert open_weights(path, raw_weights=True).averaged is False
