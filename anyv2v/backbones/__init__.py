"""Image-to-video networks (backbones), which the editor uses through one interface, `Backbone`."""
