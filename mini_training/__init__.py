"""Makes the embedded model: pictures, captions, latents, training, export. Not part of the wheel."""
