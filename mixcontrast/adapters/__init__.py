"""At home in other people's code: one file a library, imported only by those who use it.

`mixcontrast.adapters.pytorch_metric_learning`, `.sentence_transformers`, `.lightly` and `.sklearn`; each is installed
by the extra of its library's name. open_clip needs none: ClipLoss, SigLipLoss and GeodesicMixup have its own call.
"""
