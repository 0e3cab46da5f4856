"""The building blocks and the one plain conditional U-Net."""
