"""Adapters: small trainable parts attached to a frozen backbone, the same for images and text."""
