"""Methods of convolution for CPUs; other devices never use them.

Imports JAX and `flax_vae.ops.conv_method`; used by `flax_vae.ops.convolution`, whose table lists the methods.  Without
this folder and its rows in the table, results are the same up to rounding.
"""
