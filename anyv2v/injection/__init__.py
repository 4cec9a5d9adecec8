"""The paper's injection: hooks at named sites, fractions of the steps, recorded features."""
