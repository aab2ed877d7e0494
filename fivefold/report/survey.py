"""The survey's Table 1, as it was published: CIFAR-10, Fréchet Inception distance and bits per dimension.

Figures of others, from their own papers and machines: they stand beside the measured ones, never among them.
(The survey's stars are images that its text does not hold; its rules for them are applied to what is measured.)
"""

from __future__ import annotations

from typing import NamedTuple


class Published(NamedTuple):
    """A row: its name, FID, the kind and value of its NLL in bits per dimension, its two ticks."""

    method: str
    fid: float | None
    kind: str
    bits: float | None
    free_form: str
    exact: str


TABLE_1 = {
    "dcgan": Published("DCGAN", 37.11, "none", None, "✓", "✗"),
    "progan": Published("ProGAN", 15.52, "none", None, "✓", "✗"),
    "biggan": Published("BigGAN", 14.73, "none", None, "✓", "✗"),
    "stylegan2-ada": Published("StyleGAN2 + ADA", 2.42, "none", None, "✓", "✗"),
    "igebm": Published("IGEBM", 37.9, "none", None, "✓", "✗"),
    "ddpm": Published("Denoising Diffusion", 3.17, "lower bound", 3.75, "✓", "(✓)"),
    "score-sde": Published("DDPM++ Continuous", 2.20, "none", None, "✓", "(✓)"),
    "flow-contrastive": Published("Flow Contrastive (EBM)", 37.30, "estimate", 3.27, "✓", "✗"),
    "vaebm": Published("VAEBM", 12.19, "none", None, "✓", "✗"),
    "vae": Published("Convolutional VAE", 106.37, "lower bound", 4.54, "✓", "(✓)"),
    "vlae": Published("Variational Lossy AE", None, "lower bound", 2.95, "✗", "(✓)"),
    "vq-vae": Published("VQ-VAE", None, "lower bound", 4.67, "✗", "(✓)"),
    "vq-vae-2": Published("VQ-VAE (of the same row)", None, "lower bound", 4.67, "✗", "(✓)"),
    "vdvae": Published("VD-VAE", None, "lower bound", 2.87, "✓", "(✓)"),
    "pixelrnn": Published("PixelRNN", None, "exact", 3.00, "✗", "✓"),
    "gated-pixelcnn": Published("Gated PixelCNN", 65.93, "exact", 3.03, "✗", "✓"),
    "pixeliqn": Published("PixelIQN", 49.46, "none", None, "✗", "✓"),
    "sparse-transformer": Published("Sparse Trans. + DistAug", 14.74, "exact", 2.66, "✗", "✓"),
    "realnvp": Published("RealNVP", None, "exact", 3.49, "✗", "✓"),
    "glow": Published("GLOW", 45.99, "exact", 3.35, "✗", "✓"),
    "ffjord": Published("FFJORD", None, "exact", 3.40, "✓", "(✓)"),
    "residual-flow": Published("Residual Flow", 46.37, "exact", 3.28, "✓", "(✓)"),
}
