"""Mixers: each wraps a loss, or another mixer, and makes harder examples of its table."""

from mixcontrast.mixers.base import Mixer
from mixcontrast.mixers.deep import DeepMetrix
from mixcontrast.mixers.geodesic import GeodesicMixup, MixTerm
from mixcontrast.mixers.metrix import Metrix
from mixcontrast.mixers.mochi import MoCHi
from mixcontrast.mixers.supremix import SupReMix
from mixcontrast.mixers.synco import SynCo

__all__ = ["DeepMetrix", "GeodesicMixup", "Metrix", "Mixer", "MixTerm", "MoCHi", "SupReMix", "SynCo"]
