"""Contents of the data room: every data set's source, licence, checksums and counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from clbench.errors import UnknownName

Family = Literal["cifar", "imagenet-r", "imagenet-a", "cub", "tiny-imagenet", "pacs"]


@dataclass(frozen=True)
class Archive:
    """One published file."""

    file: str
    url: str | None = None
    """None: it has to be fetched by hand, from the home page."""
    bytes: int | None = None
    md5: str | None = None
    sha256: str | None = None

    @property
    def checksum(self) -> tuple[str, str] | None:
        """The strongest published checksum, as algorithm and value; None: a copy cannot be verified."""
        if self.sha256 is not None:
            return "sha256", self.sha256
        return None if self.md5 is None else ("md5", self.md5)


@dataclass(frozen=True)
class Counts:
    """How many images a complete set has."""

    images: int
    classes: int
    train: int | None = None
    """None: the set comes without a split, or with several; the rule that is used says how many train."""
    domains: int = 0


@dataclass(frozen=True)
class DataSet:
    """What is known of a data set before it is on this machine."""

    name: str
    title: str
    family: Family
    licence: str
    home: str
    """Where it is published; '' for a part of another set."""
    folder: str
    """The folder inside the archive."""
    archive: Archive
    lists: tuple[Archive, ...] = ()
    """Small files beside the archive, without which the set is not defined."""
    counts: Counts | None = None
    """None: a subset, of which only the classes are known."""
    members: Mapping[str, str] = field(default_factory=dict)
    """md5 of files inside the archive, where published: so that an unpacked folder is verified as well."""
    subset: str | None = None
    """The name under which a part of this set may be prepared."""

    @property
    def hint(self) -> str:
        """What to say when something is not this set, because it may be a part of it."""
        return "" if self.subset is None else f" A part of {self.title} is prepared as '{self.subset}'."


_CIFAR100 = DataSet(
    name="cifar100",
    title="CIFAR-100",
    family="cifar",
    licence="no licence stated; research use with citation",
    home="https://www.cs.toronto.edu/~kriz/cifar.html",
    folder="cifar-100-python",
    archive=Archive(
        "cifar-100-python.tar.gz",
        "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        bytes=169_001_437,
        md5="eb9058c3a382ffc7106e4002c42a8d85",
    ),
    counts=Counts(images=60_000, classes=100, train=50_000),
    members={
        "train": "16019d7e3df5f24257cddd939b257f8d",
        "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
        "meta": "7973b15100ade9c7d40fb424638fde48",
    },
    subset="cifar100-subset",
)

_CIFAR100_SUBSET = DataSet(
    name="cifar100-subset",
    title="CIFAR-100, a part of its images",
    family="cifar",
    licence=_CIFAR100.licence,
    home="",
    folder="cifar-100-python",
    archive=Archive("cifar-100-python-subset.tar.xz"),
)

_IMAGENET_R = DataSet(
    name="imagenet-r",
    title="ImageNet-R, split by the published lists",
    family="imagenet-r",
    licence="MIT (lists and labels); the pictures remain their makers'",
    home="https://github.com/hendrycks/imagenet-r",
    folder="imagenet-r",
    archive=Archive(
        "imagenet-r.tar",
        "https://people.eecs.berkeley.edu/~hendrycks/imagenet-r.tar",
        bytes=2_191_079_936,
        md5="a61312130a589d0ca1a8fca1f2bd3337",
        sha256="18c6bf493b39a0d975d48e587437f562caab9c52ae6327dcfa9dd8eb54aa1b52",
    ),
    lists=(
        Archive(
            "imagenet-r_train.yaml",
            "https://raw.githubusercontent.com/GT-RIPL/CODA-Prompt/main/dataloaders/splits/imagenet-r_train.yaml",
            md5="b90d9c763369c87dbd9becb80abd83b3",
        ),
        Archive(
            "imagenet-r_test.yaml",
            "https://raw.githubusercontent.com/GT-RIPL/CODA-Prompt/main/dataloaders/splits/imagenet-r_test.yaml",
            md5="3ea5a3aa2e96578874254d4ee87321b3",
        ),
    ),
    counts=Counts(images=30_000, classes=200, train=24_000),
)

_IMAGENET_A = DataSet(
    name="imagenet-a",
    title="ImageNet-A",
    family="imagenet-a",
    licence="MIT (lists and labels); the pictures remain their makers'",
    home="https://github.com/hendrycks/natural-adv-examples",
    folder="imagenet-a",
    archive=Archive(
        "imagenet-a.tar",
        "https://people.eecs.berkeley.edu/~hendrycks/imagenet-a.tar",
        bytes=687_552_512,
        md5="c3e55429088dc681f30d81f4726b6595",
        sha256="3bb3632277e6ba6392ea64c02ddbf4dd2266c9caffd6bc09c9656d28f012589e",
    ),
    counts=Counts(images=7_500, classes=200),
)

_CUB200 = DataSet(
    name="cub200",
    title="Caltech-UCSD Birds 200 (2011), official split",
    family="cub",
    licence="non-commercial research and education",
    home="https://www.vision.caltech.edu/datasets/cub_200_2011/",
    folder="CUB_200_2011",
    archive=Archive(
        "CUB_200_2011.tgz",
        "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",
        bytes=1_150_585_339,
        md5="97eceeb196236b17998738112f37df78",
    ),
    counts=Counts(images=11_788, classes=200, train=5_994),
)

_TINY_IMAGENET = DataSet(
    name="tiny-imagenet",
    title="Tiny ImageNet; its validation images are the test images",
    family="tiny-imagenet",
    licence="ImageNet's terms: non-commercial research and education",
    home="http://cs231n.stanford.edu/tiny-imagenet-200.zip",
    folder="tiny-imagenet-200",
    archive=Archive(
        "tiny-imagenet-200.zip",
        "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
        bytes=248_100_043,
        md5="90528d7ca1a48142e341f4ef8d21d0de",
    ),
    counts=Counts(images=110_000, classes=200, train=100_000),
)

_PACS = DataSet(
    name="pacs",
    title="PACS: art paintings, cartoons, photos and sketches",
    family="pacs",
    licence="no licence stated; research use with citation",
    home="https://domaingeneralization.github.io",
    folder="kfold",
    archive=Archive("PACS.zip"),  # handed out through a web form, without a checksum: what is inside is counted
    counts=Counts(images=9_991, classes=7, domains=4),
)

CONTENTS: dict[str, DataSet] = {
    data.name: data for data in (_CIFAR100, _CIFAR100_SUBSET, _IMAGENET_R, _IMAGENET_A, _CUB200, _TINY_IMAGENET, _PACS)
}
"""By name. The checksums are as published: CIFAR-100 on its home page, the lists of ImageNet-R in the repository of
CODA-Prompt, the sha256 of ImageNet-R and -A in TensorFlow Datasets, CUB with CaltechDATA; the md5 of Tiny ImageNet and
of ImageNet-R and -A are those that loaders of several libraries agree on. PACS and the subset have none."""


def data_set(name: str) -> DataSet:
    """The data set called `name`; UnknownName where there is none."""
    if name not in CONTENTS:
        raise UnknownName("data set", name, CONTENTS)
    return CONTENTS[name]
