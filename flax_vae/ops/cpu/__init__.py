"""Methods for CPUs; other devices never use them.

Imports JAX and the other files of `flax_vae.ops`; used by the table of `flax_vae.ops.convolution` and by
`flax_vae.ops.upsampling`.  Without this folder, and the lines that name it, results are equal up to rounding.
"""
