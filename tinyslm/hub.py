"""Models from the Hugging Face hub, by name: REPO, REPO:QUANT or REPO:FILE.

The cache, the token, the endpoint and the offline switch are huggingface_hub's, with its environment variables
(HF_HOME, HF_HUB_CACHE, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE), so that what other programs downloaded is found and the
other way round. Files come over plain HTTP, into its cache's layout
(https://huggingface.co/docs/huggingface_hub/guides/manage-cache): its own download neither goes on where an earlier
process stopped nor compares a checksum.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import ModuleType
from urllib.parse import urlsplit

from .errors import HubError, OptionError

PREFIX = "hf:"
# The default, then what is nearest to it: 4 bits, then more, then fewer.
PREFERENCE = (
    "Q4_K_M", "Q4_K_S", "Q4_0", "Q4_K_L", "Q4_K_XL", "Q4_K", "Q4_1", "IQ4_NL", "IQ4_XS", "MXFP4", "MXFP4_MOE",
    "Q5_K_M", "Q5_K_S", "Q5_K_L", "Q5_K_XL", "Q5_K", "Q5_0", "Q5_1", "Q6_K", "Q6_K_L", "Q6_K_XL", "Q8_0", "Q8_K_XL",
    "F16", "BF16", "F32", "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q3_K_XL", "Q3_K", "Q2_K", "Q2_K_L", "Q2_K_S", "Q2_K_XL",
)  # fmt: skip
_REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)
_QUANT = re.compile(
    r"(?<![a-z0-9])(UD-)?(I?Q\d(_[a-z0-9]+)*|TQ\d_\d|MXFP4(_MOE)?|NVFP4|BF16|FP?16|FP?32)(?![a-z0-9])", re.IGNORECASE
)


@dataclass(frozen=True)
class File:
    """A file of a repository. digest: sha256 of a large file, git's sha1 of a small one, empty where not known."""

    name: str
    size: int
    digest: str = ""


@dataclass(frozen=True)
class Choice:
    """A model of a repository: its parts in order, mostly one; quant as the name spells it, or empty."""

    quant: str
    files: tuple[File, ...]

    @property
    def name(self) -> str:
        return self.files[0].name

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True)
class Found:
    """A model that a name stands for. commit: the version, empty where it lies in the cache and the hub was not asked.

    others: what else the repository has (of a cached one: the cache), as can be written behind its name.
    """

    repo: str
    choice: Choice
    path: Path
    commit: str = ""
    others: tuple[str, ...] = ()

    @property
    def spec(self) -> str:
        return f"{PREFIX}{self.repo}:{self.choice.quant or self.choice.name}"


def fetch(name: str, *, update: bool = False, progress: Callable[[int], None] | None = None) -> Path:
    """The local path of the model that a name stands for, downloaded where it has to be. See find, download."""
    return download(find(name, update=update), progress)


def find(name: str, *, update: bool = False) -> Found:
    """The model that REPO, REPO:QUANT or REPO:FILE (with or without `hf:`) stands for; nothing is downloaded.

    One that the cache holds is taken without asking the hub, unless `update`. Without a quant or a file it is the first
    of PREFERENCE that there is, or the only model.

    Raises OptionError for a name that cannot be one, HubError where there is no such repository, access or model, or
    the hub cannot be asked.
    """
    repo, wanted = _parse(name)
    offline = _constants().HF_HUB_OFFLINE
    if not update or offline:
        for snapshot in _snapshots(_folder(repo)):
            choices = _choices(_cached_files(snapshot))
            if matches := _matches(choices, wanted):
                choice = _only(repo, matches)
                return Found(repo, choice, snapshot / choice.name, others=_others(choices, choice))
        if offline:
            what = f"{repo}:{wanted}" if wanted else repo
            raise HubError(f"{what} is not in the cache, and HF_HUB_OFFLINE is set: no download is tried")
    from .hub_download import listing

    commit, files = listing(repo)
    choices = _choices(files)
    if not choices:
        raise HubError(f"{repo} has no GGUF model: search for it with GGUF in the name, other kinds cannot be loaded")
    matches = _matches(choices, wanted)
    if not matches:
        raise HubError(f"{repo} has no {wanted!r}: there are {_listed(_spellings(choices))}")
    choice = _only(repo, matches)
    return Found(repo, choice, _folder(repo) / "snapshots" / commit / choice.name, commit, _others(choices, choice))


def download(found: Found, progress: Callable[[int], None] | None = None) -> Path:
    """Bring what is missing of a model into the cache; the path of its (first) file.

    What an earlier try left is gone on with. A file has its place only when it is whole and its checksum right.
    progress: called with the bytes of the model that are there.

    Raises HubError: no access, the network, a wrong checksum, a full disk.
    """
    if found.commit:
        from .hub_download import bring

        bring(found.repo, found.commit, found.choice.files, _folder(found.repo), progress or (lambda _: None))
    return found.path


def cached() -> list[Found]:
    """The models in the cache, by name. No network."""
    models: dict[tuple[str, str], Found] = {}
    for folder in sorted(Path(_constants().HF_HUB_CACHE).glob("models--*")):
        repo = folder.name.removeprefix("models--").replace("--", "/")
        if _REPO.fullmatch(repo):
            for snapshot in _snapshots(folder):
                for choice in _choices(_cached_files(snapshot)):
                    models.setdefault((repo, choice.name), Found(repo, choice, snapshot / choice.name))
    return [models[key] for key in sorted(models)]


def quant_of(name: str) -> str:
    """The quantisation that a file's name tells, or its folder's, in capitals; empty where none does."""
    path = PurePosixPath(name)
    for text in (path.stem, path.parent.name):
        if found := list(_QUANT.finditer(text)):
            return _spelled(found[-1].group())
    return ""


def _spelled(quant: str) -> str:
    """As GGUF spells it: capitals, F16 for fp16."""
    return re.sub("^FP", "F", quant.upper())


def _parse(name: str) -> tuple[str, str]:
    repo, _, wanted = name.removeprefix(PREFIX).partition(":")
    if not _REPO.fullmatch(repo) or "--" in repo or ".." in repo or repo.endswith((".git", ".", "-")):
        raise OptionError(f"{name!r} is no hub model: write {PREFIX}OWNER/NAME, or {PREFIX}OWNER/NAME:QUANT")
    return repo, wanted


# ---- what there is, and which of it ----


def _choices(files: Iterable[File]) -> list[Choice]:
    """The models among files: parts of a split one together; no projectors, no importance matrices, nothing partial."""
    groups: dict[tuple[str, int], list[File]] = {}
    for file in sorted(files, key=lambda f: f.name):
        base = file.name.rpartition("/")[2].lower()
        if not base.endswith(".gguf") or "mmproj" in base or ("imatrix" in base and not quant_of(base)):
            continue
        part = _PART.fullmatch(file.name)
        key = (part["stem"], int(part["count"])) if part else (file.name, 1)
        groups.setdefault(key, []).append(file)
    return [Choice(_label(stem), tuple(g)) for (stem, count), g in groups.items() if len(g) == count]


def _label(stem: str) -> str:
    return quant_of(stem if stem.lower().endswith(".gguf") else f"{stem}.gguf")


def _matches(choices: list[Choice], wanted: str) -> list[Choice]:
    """The models that a wish fits; without one, the most preferred kind that there is, or all."""
    if wanted.lower().endswith(".gguf"):
        names = [c for c in choices if any(f.name == wanted for f in c.files)]
        return names or [c for c in choices if any(f.name.rpartition("/")[2] == wanted for f in c.files)]
    for kind in (_spelled(wanted),) if wanted else PREFERENCE:
        for spelling in (kind, f"UD-{kind}"):
            if found := [c for c in choices if c.quant == spelling]:
                return found
    return [] if wanted else choices


def _only(repo: str, matches: list[Choice]) -> Choice:
    if len(matches) > 1:
        names = _listed([c.name for c in matches])
        raise HubError(f"{repo} has more than one such model: name the file, as in {repo}:{matches[0].name} ({names})")
    return matches[0]


def _spellings(choices: list[Choice]) -> list[str]:
    """What to write behind a repository's name for each model."""
    quants = [c.quant for c in choices]
    return [c.quant if c.quant and quants.count(c.quant) == 1 else c.name for c in choices]


def _others(choices: list[Choice], choice: Choice) -> tuple[str, ...]:
    return tuple(text for text, c in zip(_spellings(choices), choices, strict=True) if c is not choice)


def _listed(names: list[str], most: int = 20) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


# ---- the cache ----


def _constants() -> ModuleType:
    """What huggingface_hub takes from the environment."""
    try:
        from huggingface_hub import constants

        urlsplit(constants.ENDPOINT)
    except ValueError:
        raise OptionError(f"HF_ENDPOINT={os.environ.get('HF_ENDPOINT')!r} is no address") from None
    return constants


def _folder(repo: str) -> Path:
    return Path(_constants().HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"


def _snapshots(folder: Path) -> Iterator[Path]:
    """The versions of a repository that the cache has: the one that the hub showed last, then others, newest first."""
    try:
        main = (folder / "refs" / "main").read_text().strip()
    except (OSError, UnicodeDecodeError):
        main = ""
    try:
        there = [s for s in (folder / "snapshots").iterdir() if _COMMIT.fullmatch(s.name)]
    except OSError:
        return
    yield from sorted(there, key=lambda s: (s.name != main, -s.stat().st_mtime, s.name))


def _cached_files(snapshot: Path) -> Iterator[File]:
    for folder, _, names in os.walk(snapshot):
        for name in names:
            path = Path(folder, name)
            if path.is_file():  # not a link whose target is gone
                yield File(path.relative_to(snapshot).as_posix(), path.stat().st_size)
