"""Masks from image-level labels."""
