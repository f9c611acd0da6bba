"""The command `flax-vae-train`.

Imports all other rooms; nothing imports it.
"""
