"""How each preset is trained where nothing else is asked for."""

from convert.presets import preset
from train.config import DataConfig, OptimConfig, TrainConfig


def recipe(name: str) -> TrainConfig:
    """The run that trains a preset from scratch.

    `tiny` is one that can be watched:

      flax-vae-train
      hardware: two CPU cores, or anything else
      expect:   two to four minutes, 27.4 dB PSNR and 0.81 SSIM on the held-out photograph

    Five photographs hold few colours, and a fresh norm hides an image's brightness from a small model; hence the
    shuffled channels and the transparent start.  Without the first, the cat's green eyes come out orange at the same
    PSNR; without the second, the run ends at 24.0 dB.

    All others get the defaults of `TrainConfig`: crops at the preset's resolution, a long schedule.

    Raises:
      ValueError: if there is no such preset, or it cannot be trained on photographs.
    """
    model = preset(name)
    if name == "tiny":
        return TrainConfig(
            model=model,
            data=DataConfig(crop_size=32, shuffle_channels=True),
            optim=OptimConfig(learning_rate=7e-4, warmup_steps=30),
            transparent_start=True,
            batch_size=8,
            steps=400,
            log_every=10,
            eval_every=100,
            save_every=50,
        )
    return TrainConfig(model=model, data=DataConfig(crop_size=model.resolution))
