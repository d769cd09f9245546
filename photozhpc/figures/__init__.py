"""Figures of models: their latent spaces, and accuracy against the number of labels."""
