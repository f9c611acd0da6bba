"""The architectures and the blocks that every parity test runs over."""

from dataclasses import dataclass, replace

from flax import linen as nn

import flax_vae as F
from tests.flax_vae.random_models import PLAIN

_SEED = replace(PLAIN, attn_levels=None, downsample_padding="symmetric")

MODELS = {
    "middle attention": PLAIN,
    "attention everywhere": _SEED,
    "attention at one level": replace(PLAIN, attn_levels=(1,)),
    "time": replace(_SEED, time_emb_dim=10),
    "sinusoidal time": replace(PLAIN, time_emb_dim=12, time_embedding="sinusoidal"),
    "quant convolutions": replace(PLAIN, quant_conv=True),
    "learnable logvar": replace(PLAIN, learnable_logvar=True),
    "batch-normalised latents": replace(
        PLAIN, quant_conv=True, latent_norm="batch_norm", scale_factor=1.0, shift_factor=0.0
    ),
    "one level": replace(PLAIN, ch_mult=(2,)),
    "three levels, two blocks": replace(PLAIN, ch_mult=(1, 2, 2), num_res_blocks=2),
    "other channels in and out": replace(PLAIN, in_channels=1, out_ch=2),
    "reflection, decoder of its own, one quant convolution": replace(
        PLAIN,
        downsample_padding="symmetric",
        padding_mode="reflect",
        mid_attention=False,
        decoder_widths=(96, 32),
        post_quant_conv=True,
    ),
    "statistics per channel": replace(
        PLAIN,
        shift_factor=0.0,
        latent_mean=(-1.5, 0.3, 0.0, 2.5),
        latent_std=(8.4, 0.2, 1.0, 3.0),
        quant_conv=True,
        post_quant_conv=False,
    ),
    "everything": replace(
        _SEED, ch_mult=(1, 2, 4), attn_levels=(0, 2), time_emb_dim=10, quant_conv=True, learnable_logvar=True
    ),
}


@dataclass(frozen=True)
class Block:
    """One block inside a model: where it is, how it is made on its own in Flax, and what goes in (`b h w c`).

    In torch it is taken out of the model; in Flax it is made from its own class and given its part of the tree.
    """

    name: str
    model: str
    place: str
    flax: nn.Module
    shape: tuple[int, ...]


BLOCKS = [
    Block("attention", "middle attention", "encoder.mid.attn_1", F.AttnBlock(64), (2, 6, 5, 64)),
    Block("attention, one position", "middle attention", "encoder.mid.attn_1", F.AttnBlock(64), (2, 1, 1, 64)),
    Block("resnet, same width", "middle attention", "encoder.mid.block_1", F.ResnetBlock(64, 64), (2, 6, 5, 64)),
    Block("resnet, wider", "middle attention", "encoder.down.1.block.0", F.ResnetBlock(32, 64), (2, 7, 4, 32)),
    Block("resnet, narrower", "middle attention", "decoder.up.0.block.0", F.ResnetBlock(64, 32), (2, 3, 9, 64)),
    Block("resnet, time", "time", "encoder.mid.block_1", F.ResnetBlock(64, 64, 10), (2, 6, 5, 64)),
    Block("resnet, time, wider", "time", "encoder.down.1.block.0", F.ResnetBlock(32, 64, 10), (2, 5, 6, 32)),
    Block("downsample, symmetric", "time", "encoder.down.0.downsample", F.Downsample(32), (2, 6, 10, 32)),
    Block("downsample, symmetric, odd", "time", "encoder.down.0.downsample", F.Downsample(32), (2, 7, 5, 32)),
    Block(
        "downsample, asymmetric",
        "middle attention",
        "encoder.down.0.downsample",
        F.Downsample(32, "asymmetric"),
        (2, 6, 10, 32),
    ),
    Block(
        "downsample, asymmetric, odd",
        "middle attention",
        "encoder.down.0.downsample",
        F.Downsample(32, "asymmetric"),
        (2, 7, 5, 32),
    ),
    Block("upsample", "middle attention", "decoder.up.1.upsample", F.Upsample(64), (2, 3, 5, 64)),
    *(
        Block(f"{name}, reflection", "reflection, decoder of its own, one quant convolution", place, module, shape)
        for name, place, module, shape in (
            ("resnet", "decoder.up.0.block.0", F.ResnetBlock(32, 96, None, "reflect"), (2, 3, 2, 32)),
            ("downsample", "encoder.down.0.downsample", F.Downsample(32, "symmetric", "reflect"), (2, 7, 5, 32)),
            ("upsample", "decoder.up.1.upsample", F.Upsample(32, "reflect"), (2, 3, 5, 32)),
        )
    ),
    Block("middle", "time", "decoder.mid", F.MidBlock(MODELS["time"], 64), (2, 3, 5, 64)),
    Block(
        "down level",
        "time",
        "encoder.down.0",
        F.DownLevel(MODELS["time"], 0),
        (2, 6, 10, 32),
    ),
    Block("up level", "time", "decoder.up.1", F.UpLevel(MODELS["time"], 1), (2, 3, 5, 64)),
    Block("encoder", "time", "encoder", F.Encoder(MODELS["time"]), (2, 6, 10, 3)),
    Block("decoder", "time", "decoder", F.Decoder(MODELS["time"]), (2, 3, 5, 4)),
    Block("gaussian", "learnable logvar", "reg", F.DiagonalGaussian(False, learnable_logvar=True), (2, 3, 5, 8)),
]
