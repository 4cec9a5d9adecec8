"""The names of the small weights that come with the package."""

from anyv2v.weights import demo, flow

DEMO = "demo"
"""The name of the weights that are used where no others are named."""
PACKAGED = {DEMO: demo.FOLDER, "flow": flow.FOLDER}
"""Name -> the folder of the weights."""
