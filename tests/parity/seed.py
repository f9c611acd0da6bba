"""The seed's own code, kept as it was given: the oracle of `test_seed.py`, never imported by the packages.

Added: the imports in one place and the missing function `swish`.  Left out: demos and comments.
"""

# ruff: noqa
# fmt: off
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn


def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


class Swish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


class AttnBlock(nn.Module):
    def __init__(self, in_channels: int):
        super().__init__()
        self.in_channels = in_channels

        self.norm = nn.GroupNorm(num_groups=32, num_channels=in_channels, eps=1e-6, affine=True)

        self.q = nn.Conv2d(in_channels, in_channels, kernel_size=1)
        self.k = nn.Conv2d(in_channels, in_channels, kernel_size=1)
        self.v = nn.Conv2d(in_channels, in_channels, kernel_size=1)
        self.proj_out = nn.Conv2d(in_channels, in_channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        h_ = self.norm(x)
        q = self.q(h_) # [B, C, H, W]
        k = self.k(h_) # [B, C, H, W]
        v = self.v(h_) # [B, C, H, W]

        b, c, h, w = q.shape

        q = rearrange(q, "b c h w -> b (h w) c") # [B, H*W, C]
        k = rearrange(k, "b c h w -> b (h w) c") # [B, H*W, C]
        v = rearrange(v, "b c h w -> b (h w) c") # [B, H*W, C]

        attn_weights = torch.softmax(torch.bmm(q, k.transpose(1, 2)) / (c ** 0.5), dim=-1) # [B, H*W, H*W]

        attn_output = torch.bmm(attn_weights, v) # [B, H*W, C]

        attn_output = rearrange(attn_output, "b (h w) c -> b c h w", h=h, w=w) # [B, C, H, W]

        return x + self.proj_out(attn_output)


class ResnetBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, time_emb_dim: int = None):
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels

        self.norm1 = nn.GroupNorm(num_groups=32, num_channels=in_channels, eps=1e-6, affine=True)
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=1, padding=1)
        self.norm2 = nn.GroupNorm(num_groups=32, num_channels=out_channels, eps=1e-6, affine=True)
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, stride=1, padding=1)

        if self.in_channels != self.out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=1, padding=0)

        self.time_emb_dim = time_emb_dim
        if time_emb_dim is not None:
            self.time_mlp = nn.Linear(time_emb_dim, out_channels)

    def forward(self, x: Tensor, time_emb: Tensor = None) -> Tensor:
        h = x
        h = self.norm1(h)
        h = swish(h)
        h = self.conv1(h)

        if self.time_emb_dim is not None:
            time_h = self.time_mlp(time_emb)
            h += time_h[:, :, None, None]

        h = self.norm2(h)
        h = swish(h)
        h = self.conv2(h)

        if self.in_channels != self.out_channels:
            x = self.nin_shortcut(x)

        return x + h


class Downsample(nn.Module):
    def __init__(self, in_channels: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, in_channels, kernel_size=3, stride=2, padding=1)

    def forward(self, x: Tensor):
        return self.conv(x)

class Upsample(nn.Module):
    def __init__(self, in_channels: int):
        super().__init__()
        self.upsample = nn.Upsample(scale_factor=2.0, mode="nearest") # Explicit upsample layer
        self.conv = nn.Conv2d(in_channels, in_channels, kernel_size=3, stride=1, padding=1)

    def forward(self, x: Tensor):
        x = self.upsample(x)
        x = self.conv(x)
        return x


class Encoder(nn.Module):
    def __init__(
        self,
        resolution: int,
        in_channels: int,
        ch: int,
        ch_mult: list[int],
        num_res_blocks: int,
        z_channels: int,
        time_emb_dim: int = None # Add time embedding dimension
    ):
        super().__init__()
        self.ch = ch
        self.num_resolutions = len(ch_mult)
        self.num_res_blocks = num_res_blocks
        self.resolution = resolution
        self.in_channels = in_channels
        self.time_emb_dim = time_emb_dim
        # downsampling
        self.conv_in = nn.Conv2d(in_channels, self.ch, kernel_size=3, stride=1, padding=1)

        curr_res = resolution
        in_ch_mult = (1,) + tuple(ch_mult)
        self.in_ch_mult = in_ch_mult
        self.down = nn.ModuleList()
        block_in = self.ch
        for i_level in range(self.num_resolutions):
            block = nn.ModuleList()
            attn = nn.ModuleList()
            block_in = ch * in_ch_mult[i_level]
            block_out = ch * ch_mult[i_level]
            for _ in range(self.num_res_blocks):
                block.append(ResnetBlock(in_channels=block_in, out_channels=block_out, time_emb_dim=time_emb_dim))
                attn.append(AttnBlock(block_out))
                block_in = block_out
            down = nn.Module()
            down.block = block
            down.attn = attn # Store attn layers
            if i_level != self.num_resolutions - 1:
                down.downsample = Downsample(block_in)
                curr_res = curr_res // 2
            self.down.append(down)

        # middle
        self.mid = nn.Module()
        self.mid.block_1 = ResnetBlock(in_channels=block_in, out_channels=block_in, time_emb_dim=time_emb_dim)
        self.mid.attn_1 = AttnBlock(block_in)
        self.mid.block_2 = ResnetBlock(in_channels=block_in, out_channels=block_in, time_emb_dim=time_emb_dim)

        # end
        self.norm_out = nn.GroupNorm(num_groups=32, num_channels=block_in, eps=1e-6, affine=True)
        self.conv_out = nn.Conv2d(block_in, 2 * z_channels, kernel_size=3, stride=1, padding=1)

    def forward(self, x: Tensor, time_emb: Tensor = None) -> Tensor:
        # downsampling
        hs = [self.conv_in(x)]
        for i_level in range(self.num_resolutions):
            for i_block in range(self.num_res_blocks):
                h = self.down[i_level].block[i_block](hs[-1], time_emb)
                h = self.down[i_level].attn[i_block](h)
                hs.append(h)
            if i_level != self.num_resolutions - 1:
                hs.append(self.down[i_level].downsample(hs[-1]))

        # middle
        h = hs[-1]
        h = self.mid.block_1(h, time_emb)
        h = self.mid.attn_1(h)
        h = self.mid.block_2(h, time_emb)
        # end
        h = self.norm_out(h)
        h = swish(h)
        h = self.conv_out(h)
        return h


class Decoder(nn.Module):
    def __init__(
        self,
        ch: int,
        out_ch: int,
        ch_mult: list[int],
        num_res_blocks: int,
        in_channels: int,
        resolution: int,
        z_channels: int,
        time_emb_dim: int = None # Add time embedding dimension
    ):
        super().__init__()
        self.ch = ch
        self.num_resolutions = len(ch_mult)
        self.num_res_blocks = num_res_blocks
        self.resolution = resolution
        self.in_channels = in_channels
        self.time_emb_dim = time_emb_dim

        # compute in_ch_mult, block_in and curr_res at lowest res
        block_in = ch * ch_mult[self.num_resolutions - 1]
        curr_res = resolution // 2 ** (self.num_resolutions - 1)
        self.z_shape = (1, z_channels, curr_res, curr_res)

        # z to block_in
        self.conv_in = nn.Conv2d(z_channels, block_in, kernel_size=3, stride=1, padding=1)

        # middle
        self.mid = nn.Module()
        self.mid.block_1 = ResnetBlock(in_channels=block_in, out_channels=block_in, time_emb_dim=time_emb_dim)
        self.mid.attn_1 = AttnBlock(block_in)
        self.mid.block_2 = ResnetBlock(in_channels=block_in, out_channels=block_in, time_emb_dim=time_emb_dim)

        # upsampling
        self.up = nn.ModuleList()
        for i_level in reversed(range(self.num_resolutions)):
            block = nn.ModuleList()
            attn = nn.ModuleList()
            block_out = ch * ch_mult[i_level]
            for _ in range(self.num_res_blocks + 1):
                block.append(ResnetBlock(in_channels=block_in, out_channels=block_out, time_emb_dim=time_emb_dim))
                attn.append(AttnBlock(block_out))
                block_in = block_out
            up = nn.Module()
            up.block = block
            up.attn = attn # Store attn layers
            if i_level != 0:
                up.upsample = Upsample(block_in)
                curr_res = curr_res * 2
            self.up.insert(0, up)  # prepend to get consistent order

        # end
        self.norm_out = nn.GroupNorm(num_groups=32, num_channels=block_in, eps=1e-6, affine=True)
        self.conv_out = nn.Conv2d(block_in, out_ch, kernel_size=3, stride=1, padding=1)

    def forward(self, z: Tensor, time_emb: Tensor = None) -> Tensor:
        # z to block_in
        h = self.conv_in(z)

        # middle
        h = self.mid.block_1(h, time_emb)
        h = self.mid.attn_1(h)
        h = self.mid.block_2(h, time_emb)

        # upsampling
        for i_level in reversed(range(self.num_resolutions)):
            for i_block in range(self.num_res_blocks + 1):
                h = self.up[i_level].block[i_block](h, time_emb)
                h = self.up[i_level].attn[i_block](h)
            if i_level != 0:
                h = self.up[i_level].upsample(h)

        # end
        h = self.norm_out(h)
        h = swish(h)
        h = self.conv_out(h)
        return h


class DiagonalGaussian(nn.Module):
    def __init__(self, sample: bool = True, chunk_dim: int = 1, learnable_logvar: bool = False):
        super().__init__()
        self.sample = sample
        self.chunk_dim = chunk_dim
        self.learnable_logvar = learnable_logvar
        if learnable_logvar:
            self.logvar_scaling = nn.Parameter(torch.zeros(1))

    def forward(self, z: Tensor) -> Tensor:
        mean, logvar = torch.chunk(z, 2, dim=self.chunk_dim)
        if self.learnable_logvar:
            logvar = logvar + self.logvar_scaling  # Learn global scaling
        if self.sample:
            std = torch.exp(0.5 * logvar)
            return mean + std * torch.randn_like(mean)
        else:
            return mean


@dataclass
class AutoEncoderParams:
    resolution: int
    in_channels: int
    ch: int
    out_ch: int
    ch_mult: list[int]
    num_res_blocks: int
    z_channels: int
    scale_factor: float
    shift_factor: float
    time_emb_dim: int = None # Time embedding dimension


class AutoEncoder(nn.Module):
    def __init__(self, params: AutoEncoderParams):
        super().__init__()
        self.encoder = Encoder(
            resolution=params.resolution,
            in_channels=params.in_channels,
            ch=params.ch,
            ch_mult=params.ch_mult,
            num_res_blocks=params.num_res_blocks,
            z_channels=params.z_channels,
            time_emb_dim=params.time_emb_dim  # Pass time_emb_dim
        )
        self.decoder = Decoder(
            resolution=params.resolution,
            in_channels=params.in_channels,
            ch=params.ch,
            out_ch=params.out_ch,
            ch_mult=params.ch_mult,
            num_res_blocks=params.num_res_blocks,
            z_channels=params.z_channels,
            time_emb_dim=params.time_emb_dim  # Pass time_emb_dim
        )
        self.reg = DiagonalGaussian()

        self.scale_factor = params.scale_factor
        self.shift_factor = params.shift_factor
        self.time_emb_dim = params.time_emb_dim

        if self.time_emb_dim is not None:
            self.time_embed = nn.Linear(self.time_emb_dim, self.time_emb_dim) # Simple time embedding

    def encode(self, x: Tensor, time: Tensor = None) -> Tensor: # Add time parameter
        if time is not None and self.time_emb_dim is not None:
            time_emb = self.time_embed(time)
        else:
            time_emb = None

        z = self.reg(self.encoder(x, time_emb))
        z = self.scale_factor * (z - self.shift_factor)
        return z

    def decode(self, z: Tensor, time: Tensor = None) -> Tensor:  # Add time parameter
        if time is not None and self.time_emb_dim is not None:
            time_emb = self.time_embed(time)
        else:
            time_emb = None
        z = z / self.scale_factor + self.shift_factor
        return self.decoder(z, time_emb)

    def forward(self, x: Tensor, time: Tensor = None) -> Tensor: # Add time parameter
        return self.decode(self.encode(x, time), time)
