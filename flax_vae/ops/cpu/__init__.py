"""Methods that are faster on CPUs alone; other devices never use them.

Imports JAX; used by `flax_vae.ops.convolution`.
"""
