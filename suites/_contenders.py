"""Contenders: the methods that the embedded suites compare, one row each."""

from __future__ import annotations

from clbench.suite import Contender

CONTENDERS = (
    Contender("seqlora"),
    Contender("seqlora", {"head_masking": "seen"}, label="unmasked"),
    Contender("finetune"),
    Contender("joint"),
    Contender("ncm"),
    Contender("replay"),
    Contender("ewc"),
    Contender("olora"),
    Contender("l2p"),
    Contender("hidelora"),
    Contender("treelora"),
)
