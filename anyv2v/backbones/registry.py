"""All backbones, by the name that the config.json of a weights folder calls them by."""

from anyv2v.backbones.base import Backbone
from anyv2v.backbones.i2vgen.backbone import I2VGen

BACKBONES: dict[str, type[Backbone]] = {"i2vgen": I2VGen}
