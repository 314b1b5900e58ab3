"""Pre-trained models: how to build, find, verify and take features from them."""
