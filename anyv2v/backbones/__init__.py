"""Image-to-video networks behind one interface, `base.Backbone`."""
