"""Encoders: frozen features, and heads trained on them."""
