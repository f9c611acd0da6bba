"""How each preset is trained where nothing else is asked for."""

from convert.presets import preset
from train.config import DataConfig, OptimConfig, TrainConfig


def recipe(name: str) -> TrainConfig:
    """The run that trains a preset from scratch.

    `tiny` is one that can be watched:

      flax-vae-train
      hardware: two CPU cores, or anything else
      expect:   TIME, PSNR dB, SSIM S on the held-out photograph

    All others get the defaults of `TrainConfig`: crops at the preset's resolution, a long schedule.

    Raises:
      ValueError: if there is no such preset, or it cannot be trained on photographs.
    """
    model = preset(name)
    if name == "tiny":
        return TrainConfig(
            model=model,
            data=DataConfig(crop_size=32),
            optim=OptimConfig(learning_rate=3e-3, warmup_steps=50),
            batch_size=16,
            steps=1_200,
            log_every=20,
            eval_every=300,
            save_every=50,
        )
    return TrainConfig(model=model, data=DataConfig(crop_size=model.resolution))
