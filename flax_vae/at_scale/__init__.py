"""Many images, of any size: folders of them to latents, and latents back to images."""
