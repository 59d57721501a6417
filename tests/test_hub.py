"""Models of the hub: what a name stands for, downloads over a bad network, the cache, and what strangers may do."""

from __future__ import annotations

import errno
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hub_server import COMMIT, HubServer

import tinyslm
from tinyslm import HubError, OptionError, hub_download, shapes
from tinyslm import hub as hub_
from tinyslm.hub import cached, fetch, find, quant_of

constants = pytest.importorskip("huggingface_hub").constants
ROOT = Path(__file__).resolve().parents[1]
BIG = np.random.default_rng(0).bytes(3_000_000)
REPO = "someone/Some-Model-GGUF"
KINDS = {f"Some-Model-{kind}.gguf": kind.encode() for kind in ("Q8_0", "Q4_K_S", "Q4_K_M", "F16", "IQ2_XS")}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    from huggingface_hub.utils import close_session

    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    close_session()
    with HubServer() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)  # of huggingface_hub's own download
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 5)
        monkeypatch.setattr(hub_download, "PAUSE", 0.0)
        server.repos[REPO] = dict(KINDS)
        server.repos["someone/big"] = {"big.gguf": BIG}
        yield server
        close_session()


def refused(name: str, *, update: bool = False) -> str:
    """The message of a name that cannot be had: one line of printable characters."""
    with pytest.raises(HubError) as error:
        fetch(name, update=update)
    assert str(error.value).isprintable()
    return str(error.value)


def blobs(tmp_path: Path) -> list[str]:
    return sorted(p.name for p in tmp_path.glob("cache/models--*/blobs/*"))


# ---- what a name stands for ----


@pytest.mark.parametrize(
    ("name", "file"),
    [
        (REPO, "Some-Model-Q4_K_M.gguf"),
        (f"hf:{REPO}", "Some-Model-Q4_K_M.gguf"),
        (f"{REPO}:q8_0", "Some-Model-Q8_0.gguf"),
        (f"{REPO}:fP16", "Some-Model-F16.gguf"),
        (f"{REPO}:f16", "Some-Model-F16.gguf"),
        (f"{REPO}:Some-Model-IQ2_XS.gguf", "Some-Model-IQ2_XS.gguf"),
        ("someone/big", "big.gguf"),
    ],
)
def test_a_name_stands_for(hub: HubServer, name: str, file: str) -> None:
    found = find(name)
    assert found.choice.name == found.path.name == file
    assert not hub.gets()


@pytest.mark.parametrize(
    ("kinds", "chosen"),
    [
        ("Q8_0 Q5_K_M Q4_0 Q4_K_S Q2_K", "Q4_K_S"),
        ("Q8_0 Q5_K_M Q4_0", "Q4_0"),
        ("Q2_K F16 Q8_0 Q5_K_M", "Q5_K_M"),
        ("F16 Q8_0", "Q8_0"),
        ("Q8_0 UD-Q4_K_M", "UD-Q4_K_M"),
        ("UD-Q4_K_M Q4_K_M", "Q4_K_M"),
        ("IQ1_S", "IQ1_S"),
    ],
)
def test_the_default_kind(hub: HubServer, kinds: str, chosen: str) -> None:
    hub.repos[REPO] = {f"m-{kind}.gguf": b"x" for kind in kinds.split()}
    found = find(REPO)
    assert found.choice.quant == chosen
    assert sorted(found.others) == sorted(k for k in kinds.split() if k != chosen)


@pytest.mark.parametrize(
    ("name", "quant"),
    [
        ("SmolLM2-360M-Instruct-Q4_K_M.gguf", "Q4_K_M"), ("smollm2.q8_0.gguf", "Q8_0"), ("m-fp16.gguf", "F16"),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4"), ("Qwen2-0.5B-IQ4_NL.gguf", "IQ4_NL"), ("UD-Q4_K_XL/m.gguf", "UD-Q4_K_XL"),
        ("model.gguf", ""), ("q4-model-BF16.gguf", "BF16"), ("TQ2_0.gguf", "TQ2_0"),
    ],
)  # fmt: skip
def test_the_kind_in_a_name(name: str, quant: str) -> None:
    assert quant_of(name) == quant


def test_projectors_and_importance_matrices_are_no_models(hub: HubServer) -> None:
    hub.repos[REPO] = {"mmproj-Q4_K_M.gguf": b"p", "imatrix.gguf": b"i", "README.md": b"r", "m-imatrix-Q2_K.gguf": b"m"}
    assert find(REPO).choice.name == "m-imatrix-Q2_K.gguf"
    assert "has no" in refused(f"{REPO}:mmproj-Q4_K_M.gguf")


def test_two_models_of_a_kind_are_not_chosen_between(hub: HubServer) -> None:
    hub.repos[REPO] = {"a-Q4_K_M.gguf": b"a", "b-Q4_K_M.gguf": b"b", "c-Q8_0.gguf": b"c"}
    assert "a-Q4_K_M.gguf, b-Q4_K_M.gguf" in refused(REPO)
    assert find(f"{REPO}:Q8_0").others == ("a-Q4_K_M.gguf", "b-Q4_K_M.gguf")
    assert find(f"{REPO}:b-Q4_K_M.gguf").spec == f"hf:{REPO}:Q4_K_M"


def test_all_parts_of_a_split_model_come(hub: HubServer) -> None:
    parts = {f"Q4_0/m-Q4_0-{i:05}-of-00003.gguf": bytes([i]) * i for i in (1, 2, 3)}
    hub.repos[REPO] = {**parts, "m-Q8_0-00001-of-00002.gguf": b"its other part is missing"}
    heard: list[int] = []
    path = fetch(REPO, progress=heard.append)
    assert path.name == "m-Q4_0-00001-of-00003.gguf"
    assert [p.read_bytes() for p in sorted(path.parent.iterdir())] == list(parts.values())
    assert heard[-1] == 6
    assert heard == sorted(heard)
    assert "has no 'q8_0'" in refused(f"{REPO}:q8_0")


@pytest.mark.parametrize(
    "name", ["", "hf:", "a/b/c", "../x", "a/..", "/etc/passwd", "a--b/c", "a/b\n", "a b", "a/é", "a/"]
)
def test_what_is_no_name(hub: HubServer, name: str) -> None:
    with pytest.raises(OptionError) as error:
        fetch(name)
    assert str(error.value).isprintable()
    assert not hub.requests


# ---- downloads ----


def test_a_download_has_its_place_in_the_hubs_cache(hub: HubServer, tmp_path: Path) -> None:
    heard: list[int] = []
    path = fetch("someone/big", progress=heard.append)
    assert path.read_bytes() == BIG
    assert path == tmp_path / "cache/models--someone--big/snapshots" / COMMIT / "big.gguf"
    assert blobs(tmp_path) == [hub.digest("big.gguf", BIG)]
    assert heard == sorted(heard)
    assert heard[-1] == len(BIG)
    from huggingface_hub import hf_hub_download

    before = len(hub.gets())
    assert hf_hub_download("someone/big", "big.gguf", local_files_only=True) == str(path)
    assert hf_hub_download("someone/big", "big.gguf") == str(path)
    assert len(hub.gets()) == before == 1


def test_what_the_cache_has_needs_no_request(hub: HubServer) -> None:
    path = fetch(f"{REPO}:Q8_0")
    hub.requests.clear()
    assert fetch(f"{REPO}:Q8_0") == path
    assert fetch(REPO) == path  # what is at hand, before what is preferred
    assert not hub.requests


def test_what_huggingface_hub_downloaded_is_found(hub: HubServer) -> None:
    from huggingface_hub import hf_hub_download

    path = hf_hub_download("someone/big", "big.gguf")
    hub.requests.clear()
    assert str(fetch("someone/big")) == path
    assert not hub.requests


def test_update_fetches_what_changed_and_links_what_did_not(hub: HubServer) -> None:
    old, same = fetch(f"{REPO}:Q8_0"), fetch(f"{REPO}:F16")
    hub.commit = COMMIT[::-1]
    hub.repos[REPO] = {**KINDS, "Some-Model-Q8_0.gguf": b"newer"}
    hub.requests.clear()
    assert fetch(f"{REPO}:Q8_0") == old
    new = fetch(f"{REPO}:Q8_0", update=True)
    assert (new.read_bytes(), old.read_bytes()) == (b"newer", b"Q8_0")
    os.utime(old.parent, (2e9, 2e9))  # what the hub showed last counts, not what was written last
    assert fetch(f"{REPO}:Q8_0") == new
    assert fetch(f"{REPO}:F16", update=True) != same
    assert len(hub.gets()) == 1


def test_a_small_file_is_checked_by_its_git_name(hub: HubServer, tmp_path: Path) -> None:
    hub.git.add("big.gguf")
    assert fetch("someone/big").read_bytes() == BIG
    assert len(blobs(tmp_path)[0]) == 40


def test_a_connection_that_breaks_is_taken_up_where_it_broke(hub: HubServer) -> None:
    hub.faults.break_after = [1_000_000, 500_000, 0, 1]
    assert fetch("someone/big").read_bytes() == BIG
    assert [r.range for r in hub.gets()] == [None, "bytes=1000000-", *["bytes=1500000-"] * 2, "bytes=1500001-"]


def test_a_network_that_breaks_often_but_brings_something_will_do(hub: HubServer) -> None:
    hub.faults.break_after = [100_000] * (hub_download.TRIES + 2)
    assert fetch("someone/big").read_bytes() == BIG


def test_a_later_process_goes_on(hub: HubServer, tmp_path: Path) -> None:
    hub.faults.break_after = [1_000_000, 0, 0, 0, 0]
    assert "the same command goes on later" in refused("someone/big")
    assert blobs(tmp_path) == [hub.digest("big.gguf", BIG) + ".incomplete"]
    assert not list(tmp_path.glob("cache/*/snapshots/*"))
    assert cached() == []
    hub.requests.clear()
    heard: list[int] = []
    assert fetch("someone/big", progress=heard.append).read_bytes() == BIG
    assert [r.range for r in hub.gets()] == ["bytes=1000000-"]
    assert heard[0] > 1_000_000


def test_a_server_without_ranges_starts_again(hub: HubServer) -> None:
    hub.faults.no_ranges = True
    hub.faults.break_after = [1_000_000]
    assert fetch("someone/big").read_bytes() == BIG


def test_a_leftover_that_is_too_long_is_dropped(hub: HubServer, tmp_path: Path) -> None:
    folder = tmp_path / "cache/models--someone--big/blobs"
    folder.mkdir(parents=True)
    (folder / (hub.digest("big.gguf", BIG) + ".incomplete")).write_bytes(BIG + b"!")
    assert fetch("someone/big").read_bytes() == BIG


@pytest.mark.parametrize("lie", [BIG[:-1] + bytes([BIG[-1] ^ 1]), BIG + b"more"])
def test_a_lie_is_refused_and_does_not_stay(hub: HubServer, tmp_path: Path, lie: bytes) -> None:
    hub.faults.body = lie
    assert ("checksum" if len(lie) == len(BIG) else "more than") in refused("someone/big")
    assert all((tmp_path / "cache/models--someone--big/blobs" / name).stat().st_size == 0 for name in blobs(tmp_path))
    assert cached() == []
    hub.faults.body = None
    assert fetch("someone/big").read_bytes() == BIG


def test_a_damaged_leftover_is_refused_and_does_not_stay(hub: HubServer, tmp_path: Path) -> None:
    folder = tmp_path / "cache/models--someone--big/blobs"
    folder.mkdir(parents=True)
    (folder / (hub.digest("big.gguf", BIG) + ".incomplete")).write_bytes(b"damaged")
    assert "checksum" in refused("someone/big")
    assert blobs(tmp_path) == []


def test_silence_ends(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.1)
    hub.faults.silent_after = 0
    assert "silent for too long" in refused("someone/big")
    assert len(hub.gets()) == hub_download.TRIES


def test_a_redirect_is_followed_without_the_token(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with HubServer() as other:
        other.repos["someone/big"] = {"big.gguf": BIG}
        other.faults.break_after = [1000]
        hub.faults.redirect = other.url
        assert fetch("someone/big").read_bytes() == BIG
        assert {r.token for r in hub.requests} == {"Bearer hf_secret"}
        assert [(r.token, r.range) for r in other.requests] == [(None, None), (None, "bytes=1000-")]


def test_without_symbolic_links(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_SYMLINKS", True, raising=False)
    path = fetch("someone/big")
    assert path.read_bytes() == BIG
    assert (path.is_symlink(), blobs(tmp_path)) == (False, [])
    assert fetch("someone/big", update=True) == path
    assert len(hub.gets()) == 1


def test_two_at_once_download_once(hub: HubServer) -> None:
    hub.faults.silent_after = 1_000_000
    paths: list[Path] = []
    threads = [threading.Thread(target=lambda: paths.append(fetch("someone/big"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    while not hub.gets():
        time.sleep(0.01)
    time.sleep(0.2)
    assert len(hub.gets()) == 1
    hub.faults.silent_after = None
    hub.faults.released.set()
    for thread in threads:
        thread.join(20)
    assert [p.read_bytes() == BIG for p in paths] == [True, True]
    assert len(hub.gets()) == 2  # the first one was cut, and taken up


# ---- refusals ----


def test_unknown_repository(hub: HubServer) -> None:
    assert "has no nobody/nothing, or it is private" in refused("nobody/nothing")


def test_no_model_in_it(hub: HubServer) -> None:
    hub.repos[REPO] = {"model.safetensors": b"x"}
    assert "has no GGUF model" in refused(REPO)


def test_no_such_kind(hub: HubServer) -> None:
    assert "has no 'Q3_K\\x1b': there are F16, IQ2_XS, Q4_K_M, Q4_K_S, Q8_0" in refused(f"{REPO}:Q3_K\x1b")


@pytest.mark.parametrize(
    ("part", "status", "headers", "said"),
    [
        ("resolve", 403, {"X-Error-Code": "GatedRepo"}, "is gated"),
        ("resolve", 401, {"X-Error-Code": "GatedRepo", "X-Error-Message": "\x1b[2J"}, "is gated"),
        ("resolve", 404, {"X-Error-Code": "EntryNotFound"}, "was removed"),
        ("resolve", 500, {}, "status 500"),
        ("resolve", 418, {}, "status 418"),
        ("api", 401, {"X-Error-Message": "Invalid credentials in Authorization header"}, "does not know the token"),
        ("api", 404, {}, "or it is private"),
        ("api", 429, {}, "too many requests"),
        ("api", 500, {}, "status 500"),
    ],
)
def test_a_refusal_is_told(hub: HubServer, part: str, status: int, headers: dict[str, str], said: str) -> None:
    hub.faults.status[f"{part}/"] = (status, {k: v.replace("\x1b", "?") for k, v in headers.items()})
    assert said in refused("someone/big")


def test_no_network(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fetch("someone/big")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "no connection to 127.0.0.1:9" in refused(REPO)
    assert fetch("someone/big") == path


def test_offline(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fetch("someone/big")
    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "is not in the cache, and HF_HUB_OFFLINE is set" in refused(REPO, update=True)
    assert fetch("someone/big", update=True) == path
    assert not hub.requests


def test_a_full_disk_is_told_before_the_download(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    assert "GB free" in refused("someone/big")
    assert not hub.gets()


def test_a_disk_that_fills_is_told(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert "is full" in refused("someone/big")
    assert cached() == []


# ---- strangers ----

EVIL = ["../../../evil.gguf", "/tmp/evil.gguf", "a/../../evil.gguf", "..\\evil.gguf", "c:evil.gguf", "e\x1b[2J.gguf",
        "a\n.gguf", "./evil.gguf", "a//evil.gguf"]  # fmt: skip


@pytest.mark.parametrize("name", EVIL)
def test_names_that_could_do_harm_are_not_there(hub: HubServer, tmp_path: Path, name: str) -> None:
    hub.repos[REPO] = {name: b"evil"}
    assert "has no GGUF model" in refused(REPO)
    hub.repos[REPO] = {name: b"evil", "good-Q8_0.gguf": b"good"}
    assert fetch(REPO).read_bytes() == b"good"
    assert "has no" in refused(f"{REPO}:{name}", update=True)
    assert list(tmp_path.rglob("*evil*")) == []


def listing(**changes: object) -> bytes:
    entry = {"rfilename": "m.gguf", "size": 1, "blobId": "0" * 40, "lfs": {"sha256": "1" * 64, "size": 1}}
    answer = {"sha": COMMIT, "siblings": [{**entry, **{k: v for k, v in changes.items() if k != "sha"}}]}
    return json.dumps({**answer, **{k: v for k, v in changes.items() if k == "sha"}}).encode()


@pytest.mark.parametrize(
    "answer",
    [
        b"", b"<html>", b"[]", b"{}", b"\xff", b"null", listing(sha="../../x"), listing(sha=None), listing(rfilename=3),
        listing(lfs={"sha256": "../../../evil", "size": 1}), listing(lfs={"sha256": "1" * 64, "size": -1}),
        listing(lfs={"sha256": "1" * 64, "size": "9"}), listing(lfs=3), listing(lfs=None, blobId=None),
    ],
)  # fmt: skip
def test_an_answer_that_is_none(hub: HubServer, answer: bytes) -> None:
    hub.faults.answer = answer
    assert "no list of" in refused("someone/big")


# ---- loading, and the command line ----


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("model") / "m.gguf"
    shapes.make(path, shapes.Shape(1, 64, 2, 1, 64, 512, 64, True), "Q8_0")
    return path.read_bytes()


@pytest.fixture
def command(hub: HubServer, model: bytes, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    hub.repos["someone/tiny"] = {"tiny-Q8_0.gguf": model, "tiny-F16.gguf": b"x"}

    def run(*args: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "tinyslm", *args], env=environment(hub, tmp_path, **more),
                              stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)  # fmt: skip

    return run


def environment(hub: HubServer, tmp_path: Path, **more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TINYSLM_"))}
    return {**kept, "PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub.url,
            "TINYSLM_BACKEND": "reference", **more}  # fmt: skip


def test_load(hub: HubServer, model: bytes) -> None:
    hub.repos["someone/tiny"] = {"tiny-Q8_0.gguf": model}
    with tinyslm.load("hf:someone/tiny:q8_0", backend="reference") as loaded:
        assert loaded.path.name == "tiny-Q8_0.gguf"
    with pytest.raises(OptionError):
        tinyslm.load("hf:../x")


def test_pull_run_models(command: Callable[..., subprocess.CompletedProcess[str]], hub: HubServer) -> None:
    pulled = command("pull", "someone/tiny", HF_TOKEN="hf_x")
    assert pulled.returncode == 0, pulled
    path = Path(pulled.stdout.removesuffix("\n"))
    assert path.read_bytes() == hub.repos["someone/tiny"]["tiny-Q8_0.gguf"]
    assert f"home{os.sep}hub" in str(path)
    assert "someone/tiny has tiny-Q8_0.gguf" in pulled.stderr
    assert "also there: F16" in pulled.stderr
    assert "\r" not in pulled.stderr  # no progress where no terminal is
    assert {r.token for r in hub.requests} == {"Bearer hf_x"}
    assert "up to date" in command("pull", "hf:someone/tiny:Q8_0").stderr
    hub.requests.clear()
    run = command("run", "-m", "hf:someone/tiny", "-n", "2", "hello")
    assert (run.returncode, len(run.stderr.splitlines())) == (0, 1), run
    assert "hf:someone/tiny:Q8_0" in run.stderr
    listed = json.loads(command("models", "--json").stdout)[-1]
    assert (listed["model"], listed["quant"], listed["path"]) == ("hf:someone/tiny:Q8_0", "Q8_0", str(path))
    assert listed["bytes"] == path.stat().st_size
    assert "hf:someone/tiny:Q8_0" in command("models").stdout
    assert not hub.requests
    assert command("pull", "someone/tiny", HF_HUB_OFFLINE="1").returncode == 0
    assert not hub.requests


@pytest.mark.parametrize(
    ("name", "more", "said"),
    [
        ("nobody/x", {}, "it is private"), ("a/b/c", {}, "is no hub model"), ("someone/tiny:Q2_K", {}, "there are"),
        ("someone/tiny", {"HF_ENDPOINT": "http://[x"}, "is no address"),
        ("someone/tiny", {"HF_ENDPOINT": "nonsense"}, "is no address"),
        ("someone/tiny", {"HF_HOME": "/proc/nowhere"}, "/proc/nowhere"),
    ],
)  # fmt: skip
def test_errors_are_one_line(
    command: Callable[..., subprocess.CompletedProcess[str]], name: str, more: dict[str, str], said: str
) -> None:
    done = command("pull", name, **more)
    lines = [line for line in done.stderr.splitlines() if "has tiny-" not in line and "downloading it" not in line]
    assert (done.returncode, done.stdout, len(lines)) == (1, "", 1), done
    assert said in lines[0]


def test_ctrl_c_on_a_terminal_then_on_again(hub: HubServer, tmp_path: Path) -> None:
    hub.faults.silent_after = 1_000_000
    ours, theirs = pty.openpty()
    process = subprocess.Popen([sys.executable, "-m", "tinyslm", "pull", "someone/big"], stdin=theirs, stderr=theirs,
                               stdout=subprocess.PIPE, env=environment(hub, tmp_path, TERM="xterm"))  # fmt: skip
    os.close(theirs)
    seen = b""
    while b"33%" not in seen:
        seen += os.read(ours, 1000)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=10)
    os.close(ours)
    assert (process.returncode, out) == (130, b"")
    hub.faults.silent_after = None
    hub.requests.clear()
    done = subprocess.run([sys.executable, "-m", "tinyslm", "pull", "someone/big"], env=environment(hub, tmp_path),
                          capture_output=True, text=True, timeout=60, check=True)  # fmt: skip
    assert Path(done.stdout.strip()).read_bytes() == BIG
    assert [r.range for r in hub.gets()] == ["bytes=1000000-"]


def test_a_cache_entry_of_another_program_is_listed(hub: HubServer, tmp_path: Path) -> None:
    assert cached() == []
    place = tmp_path / "cache/models--a--b/snapshots" / COMMIT
    place.mkdir(parents=True)
    (place / "x-Q6_K.gguf").write_bytes(b"123")
    (place / "y.gguf").symlink_to("gone")
    (place / "config.json").write_bytes(b"{}")
    assert [(m.spec, m.choice.size) for m in cached()] == [("hf:a/b:Q6_K", 3)]
    assert hub_.find("a/b").path == place / "x-Q6_K.gguf"
