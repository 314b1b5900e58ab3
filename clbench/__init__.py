"""clbench teaches pre-trained models one task after another and tells honestly what they remember."""

__version__ = "0.1.0"
