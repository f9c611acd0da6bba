"""Trains autoencoders on images and exports model folders.

Use the command `flax-vae-train`, or `flax_vae.train.loop.train(config, workdir)` from Python.  Everything random is a
pure function of (seed, step, index), so a run that was interrupted and resumed ends with weights that are equal bit for
bit.  Importing the package loads nothing else, which keeps `--help` fast.
"""

if __name__ == "train":
    from flax_vae.convert.old_names import alias

    alias(__name__, "flax_vae.train")
