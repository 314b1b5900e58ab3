from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from clbench.fingerprint import of_file, of_module

SOURCES = {
    "__init__.py": "",
    "method.py": "from . import other\nfrom .below import deep\nimport json\n",
    "other.py": "import torch\n",
    "unused.py": "",
    "below/__init__.py": "from ..level import up\n",
    "below/deep.py": "",
    "level.py": "up = 1\n",
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """Another distribution's package, under a name of its own for each test."""
    name = f"foreign_{request.node.name.split('[')[0][-20:]}"
    for path, text in SOURCES.items():
        (tmp_path / name / path).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name / path).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / name


@pytest.mark.parametrize(
    ("changed", "counts"),
    [
        ("method.py", True),
        ("other.py", True),
        ("below/deep.py", True),
        ("below/__init__.py", True),
        ("level.py", True),
        ("unused.py", False),
    ],
)
def test_what_a_foreign_method_is_made_of(package: Path, changed: str, counts: bool) -> None:
    before = of_module(f"{package.name}.method")
    with (package / changed).open("a") as file:
        file.write("edited = True\n")
    assert (of_module(f"{package.name}.method") != before) is counts


CODE = '''"""What it is."""

import math


class A:
    """More of it."""

    b: int = 1  # why
    """What b is."""

    def c(self) -> str:
        return f"{self.b!r:>4} # no comment"
'''
SAME = [
    CODE.replace("\n", "\r\n"),
    CODE.replace("What it is", "What it does"),
    CODE.replace("  # why", ""),
    CODE.replace('    """What b is."""\n', ""),
    CODE.replace("import math\n", "# the standard library\nimport math\n\n"),
    CODE.replace('f"{self.b!r:>4} # no comment"', '(\n            f"{self.b!r:>4} # no comment"\n        )'),
]
OTHER = [
    CODE.replace("b: int = 1", "b: int = 2"),
    CODE.replace("b: int = 1", "b: float = 1"),
    CODE.replace("# no comment", "# a comment"),
    CODE.replace(">4", ">5"),
    CODE.replace("!r", "!s"),
    CODE.replace("import math", "import cmath"),
    CODE.replace("class A", "class B"),
    CODE.replace("return f", "f"),
]


@pytest.mark.parametrize(("texts", "counts"), [(SAME, False), (OTHER, True)], ids=["words", "code"])
def test_words_do_not_count_and_code_does(tmp_path: Path, texts: list[str], counts: bool) -> None:
    path = tmp_path / "m.py"
    path.write_text(CODE)
    before = of_file(path)
    for text in texts:
        assert text != CODE
        path.write_bytes(text.encode())
        assert (of_file(path) != before) is counts, text


def test_a_fingerprint_is_the_same_everywhere(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(CODE)
    assert of_file(tmp_path / "m.py") == "dab6eb675ce2"


def test_a_method_that_does_not_parse_still_has_a_fingerprint(package: Path) -> None:
    (package / "method.py").write_text("def broken(:\n")
    first = of_module(f"{package.name}.method")
    (package / "method.py").write_text("def broken(::\n")
    assert of_module(f"{package.name}.method") != first


def test_our_methods_count_private_siblings_and_nothing_of_the_harness() -> None:
    """Seen from the files: the fingerprint of a module equals that of its sources, in the order of their names."""
    program = (
        "import sys\n"
        "from clbench import fingerprint\n"
        "opened = []\n"
        "fingerprint._digest = lambda paths: opened.append([p.name for p in paths]) or ''\n"
        "for name in ('replay', 'seqlora', 'treelora.method'):\n"
        "    fingerprint.of_module('clbench.methods.' + name)\n"
        "assert opened[0] == ['_buffer.py', '_memory.py', 'replay.py'], opened\n"
        "assert opened[1] == ['seqlora.py'], opened\n"
        "assert {'method.py', 'tree.py', 'bandit.py'} <= set(opened[2]), opened\n"
        "assert not any('lora.py' == name for names in opened for name in names), opened\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_such_module_is_said() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"clbench\.methods\.nothing"):
        of_module("clbench.methods.nothing")
    with pytest.raises(ModuleNotFoundError, match="nowhere"):
        of_module("nowhere.at_all")
