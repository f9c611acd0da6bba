"""The command `flax-vae-convert`.

Imports all other rooms of `convert`; nothing imports it.
"""
