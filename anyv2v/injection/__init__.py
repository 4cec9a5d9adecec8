"""AnyV2V's injection of features: hooks at named sites, fractions of the steps, recorded features.

arXiv 2403.14468, section 4.2.
"""
