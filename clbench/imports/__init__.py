"""Imports: whose results can be read, and by which module."""

from __future__ import annotations

from collections.abc import Mapping

SYSTEMS: Mapping[str, str] = {"mammoth": "mammoth", "pilot": "pilot", "trace": "trace", "olora": "o_lora"}
"""System -> module of this package, each with a function `read`."""
