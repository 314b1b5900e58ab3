"""Contenders: the methods that suites compare, one row each."""

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
"""Of the embedded suites."""

EVERY = (
    *(CONTENDERS[0], CONTENDERS[1]),
    *(Contender(name) for name in ("finetune", "joint", "ncm", "pertask")),
    *(Contender(name) for name in ("replay", "er-ace", "derpp", "gem", "agem")),
    *(Contender(name) for name in ("ewc", "si", "mas", "lwf", "ogd")),
    *(Contender(name) for name in ("olora", "inclora", "inflora", "sd-lora", "sapt", "tasl")),
    *(Contender(name) for name in ("l2p", "l2pp", "dualprompt", "coda-prompt", "s-prompt", "hide-prompt")),
    *(Contender(name) for name in ("hidelora", "treelora")),
    Contender("treelora", {"decomposition": "none"}, label="plain"),
    *(Contender(name) for name in ("aper-adapter", "ranpac", "ease", "slca")),
)
"""All methods for images, by family."""
