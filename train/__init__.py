"""The training loop: photographs in, an exported model folder out.

`flax-vae-train` is its door; `flax_vae.train.loop.train(config, workdir)` is the same from Python.  Everything random
is a pure function of (seed, step, index), so a run that was interrupted and started again ends with the same weights,
bit for bit.  Nothing here is imported with the package: `--help` must not wait for a compiler.
"""

if __name__ == "train":
    from flax_vae.convert.old_names import alias

    alias(__name__, "flax_vae.train")
