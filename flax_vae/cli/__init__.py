"""The command `flax-vae`.

Imports all other rooms; nothing imports it.
"""
