"""Doors to the libraries that users have today: one file a library, imported only by those who use it.

`mixcontrast.adapters.pytorch_metric_learning`, `.sentence_transformers`, `.lightly` and `.sklearn` are installed by the
extra of their library's name. `.open_clip` gives our losses to open_clip's trainer; ClipLoss, SigLipLoss and
GeodesicMixup have its call without it.
"""
