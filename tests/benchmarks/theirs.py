"""The work in PyTorch: the reference as shipped, with what PyTorch offers to make it faster, and diffusers."""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import torch_ref.layers
from flax_vae.convert.architecture.autoencoder import AutoEncoderParams
from flax_vae.convert.weights.diffusers_config import write_diffusers_config
from tests.benchmarks.process import ADAMW, cores
from tests.benchmarks.rows import AUTOTUNE, COMPILED, DIFFUSERS, REF, Row

Call = Callable[[], Any]


def build(row: Row, contender: str) -> Call:
    """Returns the work as a call that waits for its result; `torch.compile` compiles in the first one."""
    torch.set_num_threads(cores())
    torch.manual_seed(0)
    device = "cuda" if row.half and torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.benchmark = contender != REF
    # as shipped, or channels last and without attention matrices; diffusers attends that way by itself
    layout = torch.contiguous_format if contender == REF else torch.channels_last
    if contender not in (REF, DIFFUSERS):
        torch_ref.layers.attention = sdpa
    model = Diffusers(row.record) if contender == DIFFUSERS else torch_ref.AutoEncoder(row.record)
    # Trained parameters stay float32; others are held in the dtype of the arithmetic, and not cast at each call.
    held = torch.bfloat16 if row.half and row.work != "training" else torch.float32
    model = model.to(device, held, memory_format=layout)
    images = torch.empty(row.batch, row.record.in_channels, row.px, row.px).uniform_(-1, 1)
    batch, height, width, channels = row.latent_shape
    latents = torch.randn(batch, channels, height, width)
    images, latents = (x.to(device, held, memory_format=layout) for x in (images, latents))

    def reconstruct() -> Tensor:
        return model(images, sample=False)

    def encode() -> Tensor:
        return model.encode(images, sample=False)

    def decode() -> Tensor:
        return model.decode(latents)

    work = {"forward": reconstruct, "training": reconstruct, "encode": encode}.get(row.work, decode)
    if contender in COMPILED:
        mode = "max-autotune" if contender == AUTOTUNE else "default"
        for method in ("forward", "encode", "decode"):
            setattr(model, method, torch.compile(getattr(model, method), mode=mode))
    if row.work == "training":
        # the default makes one pass over memory per operation, the fused one a single pass per tensor
        optimizer = adamw(model, fused=None if contender == REF else True)
        work = _training(work, optimizer, images, device, row.half)
    else:
        work = torch.inference_mode()(work)

    def call() -> Tensor:
        result = work()
        if device == "cuda":
            torch.cuda.synchronize()
        return result

    return call


def _training(work: Call, optimizer: torch.optim.Optimizer, images: Tensor, device: str, half: bool) -> Call:
    def call() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16) if half else contextlib.nullcontext():
            loss = F.l1_loss(work().float(), images)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return call


def adamw(model: nn.Module, fused: bool | None) -> torch.optim.AdamW:
    """The optimiser of the training rows, with the numbers that optax is given."""
    return torch.optim.AdamW(
        model.parameters(),
        lr=ADAMW["learning_rate"],
        betas=(ADAMW["b1"], ADAMW["b2"]),
        eps=ADAMW["eps"],
        weight_decay=ADAMW["weight_decay"],
        fused=fused,
    )


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Stands in for `torch_ref.attention.attention`: the same product by PyTorch's own kernels."""
    return F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]


class Diffusers(nn.Module):
    """`AutoencoderKL` behind the reference's two methods."""

    def __init__(self, record: AutoEncoderParams):
        super().__init__()
        from diffusers import AutoencoderKL

        self.record = record
        self.vae = AutoencoderKL.from_config(write_diffusers_config(record))

    def decode(self, z: Tensor) -> Tensor:
        """Images of scaled latents."""
        return self.vae.decode(z / self.record.scale_factor + self.record.shift_factor).sample

    def encode(self, x: Tensor, sample: bool) -> Tensor:
        """Scaled latents, the posterior's mean or a sample."""
        z = self.vae.encode(x).latent_dist.sample() if sample else self.vae.encode(x).latent_dist.mode()
        return self.record.scale_factor * (z - self.record.shift_factor)

    def forward(self, x: Tensor, sample: bool) -> Tensor:
        """Images decoded from the posterior's mean."""
        return self.decode(self.encode(x, sample))
