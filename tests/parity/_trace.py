"""Which submodule is the first to disagree.

Both models run once with all their layers watched.  The table says which layer of one is which of the other, and torch
says in which order they ran.
"""

import jax.numpy as jnp
import numpy as np
import torch

from convert import expand
from convert.table import flatten
from tests.parity._agree import difference, nchw, nhwc


def layer_differences(flax_pair, torch_model, images, time, noise) -> list[tuple[str, float]]:
    """Every layer that has weights, in the order of execution, and how far the two frameworks are apart behind it."""
    model, tree = flax_pair
    _, state = model.apply(
        {"params": tree}, images, time, noise=noise, capture_intermediates=True, mutable=["intermediates"]
    )
    ours = {path.removesuffix("/__call__"): out[0] for path, out in flatten(state["intermediates"]).items()}

    theirs, hooks = {}, []
    for name, layer in torch_model.named_modules():

        def keep(_, __, output, name=name):
            theirs[name] = output

        hooks.append(layer.register_forward_hook(keep))
    try:
        with torch.no_grad():
            torch_model(nchw(images), nchw(time), noise=nchw(noise))
    finally:
        for hook in hooks:
            hook.remove()

    pairs = {row.theirs.rpartition(".")[0]: row.ours.rpartition("/")[0] for row in expand(model.params)}
    return [
        (name, difference(np.asarray(ours[pairs[name]].astype(jnp.float64)), nhwc(output)))
        for name, output in theirs.items()
        if name in pairs and pairs[name] in ours
    ]


def first_difference(flax_pair, torch_model, images, time, noise, tolerance: float) -> str:
    """One sentence for the message of a failing test."""
    layers = layer_differences(flax_pair, torch_model, images, time, noise)
    for name, apart in layers:
        if apart > tolerance:
            return f"the first submodule that disagrees is {name} ({apart:.3g} of its RMS)"
    return f"each of the {len(layers)} submodules agrees; look at what stands between them"
