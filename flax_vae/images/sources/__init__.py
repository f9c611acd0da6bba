"""Numbered lists of images, by their address: folders, arrays, tables, archives; with labels and captions.

Imports the other files of `flax_vae.images`, which names what other rooms use.  Optional packages are loaded by the
sources that need them.
"""
