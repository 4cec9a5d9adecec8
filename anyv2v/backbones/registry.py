"""All backbones, by the name that config.json in a weights folder gives as its "backbone"."""

from anyv2v.backbones.base import Backbone
from anyv2v.backbones.consisti2v.backbone import ConsistI2V
from anyv2v.backbones.i2vgen.backbone import I2VGen
from anyv2v.backbones.seine.backbone import Seine
from anyv2v.backbones.wan.backbone import Wan

BACKBONES: dict[str, type[Backbone]] = {
    "i2vgen": I2VGen,
    "consisti2v": ConsistI2V,
    "seine": Seine,
    "wan": Wan,
}
"""Name of a backbone in config.json -> its class."""
