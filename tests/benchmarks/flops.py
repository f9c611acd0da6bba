"""Floating-point operations of an autoencoder, counted from its architecture.

Convolutions and the two products of attention, a multiplication and an addition each; the rest is a per cent or two.
XLA's own count would miss what runs in loops and reward what is computed twice.  This one is of the plain model, so
that a path that saves arithmetic shows as more operations per second.
"""

from itertools import pairwise

from flax_vae.convert.architecture.autoencoder import AutoEncoderParams
from flax_vae.convert.architecture.discriminator import KERNEL, DiscriminatorParams


def work_flops(work: str, record: AutoEncoderParams, px: int, batch: int = 1) -> int:
    """Of one call of a row's work; a training step is three forward passes, the optimiser nothing."""
    decode = decode_flops(record, px)
    encode = encode_flops(record, px)
    forward = encode + decode
    return batch * {"encode": encode, "forward": forward, "training": 3 * forward}.get(work, decode)


def encode_flops(record: AutoEncoderParams, px: int) -> int:
    """Of the encoder for one square image, the quant convolution included."""
    total, width = _conv(record.in_channels, record.ch, px, 3), record.ch
    for level, out in enumerate(record.widths):
        total += _blocks((width, *[out] * record.num_res_blocks), px, record.attends(level))
        width = out
        if level != record.num_levels - 1:
            px //= 2
            total += _conv(width, width, px, 3)
    moments = 2 * record.z_channels
    quant = _conv(moments, moments, px, 1) if record.quant_conv else 0
    return total + _middle(width, px) + _conv(width, moments, px, 3) + quant


def decode_flops(record: AutoEncoderParams, px: int) -> int:
    """Of the decoder for one square image of that side."""
    px //= 2 ** (record.num_levels - 1)
    width, z = record.up_widths[-1], record.z_channels
    total = _conv(z, z, px, 1) if record.quant_conv else 0
    total += _conv(z, width, px, 3) + _middle(width, px)
    for level in reversed(range(record.num_levels)):
        out = record.up_widths[level]
        total += _blocks((width, *[out] * (record.num_res_blocks + 1)), px, record.attends(level))
        width = out
        if level:
            px *= 2
            total += _conv(width, width, px, 3)
    return total + _conv(width, record.out_ch, px, 3)


def discriminator_flops(record: DiscriminatorParams, px: int, batch: int = 1) -> int:
    """Of the discriminator in one training step.

    It sees reconstructions for the autoencoder's loss and both kinds of images for its own, which are three forward
    passes; gradients with respect to feature maps, of all three; and to kernels, of two.
    """
    first, total, width = 0, 0, record.in_channels
    for out, stride in [*zip(record.widths, record.strides, strict=True), (1, 1)]:
        px = (px + 2 - KERNEL) // stride + 1
        total += _conv(width, out, px, KERNEL)
        first, width = first or total, out
    return batch * (8 * total - 2 * first)  # no gradient with respect to the images in its own loss


def attention_flops(width: int, positions: int) -> int:
    """Of `q kᵀ` and of the weights times v."""
    return 4 * positions**2 * width


def _blocks(widths: tuple[int, ...], px: int, attend: bool) -> int:
    attention = _attn(widths[-1], px) if attend else 0
    return sum(_resnet(i, o, px) + attention for i, o in pairwise(widths))


def _middle(width: int, px: int) -> int:
    return 2 * _resnet(width, width, px) + _attn(width, px)


def _resnet(i: int, o: int, px: int) -> int:
    return _conv(i, o, px, 3) + _conv(o, o, px, 3) + (_conv(i, o, px, 1) if i != o else 0)


def _attn(width: int, px: int) -> int:
    return 4 * _conv(width, width, px, 1) + attention_flops(width, px**2)


def _conv(i: int, o: int, px: int, kernel: int) -> int:
    return 2 * kernel**2 * i * o * px**2
