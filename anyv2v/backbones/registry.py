"""The networks that there are, by the name a weights folder calls them."""

from anyv2v.backbones.base import Backbone
from anyv2v.backbones.i2vgen.backbone import I2VGen

BACKBONES: dict[str, type[Backbone]] = {"i2vgen": I2VGen}
