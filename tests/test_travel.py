"""Runs are pushed and pulled whole or not at all: to a folder, stores of fsspec, and a hub on the loopback."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer

import fsspec
import numpy as np
import pandas as pd
import pytest
import torch

import fivefold
from fivefold.apps.travel import TRAINING, Store, pull, push
from fivefold.errors import RunError, Untrusted
from fivefold.training.fit import resume
from tests.toys import package, source

ALWAYS = {"run.json", "weights.safetensors", "README.md"}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    place = tmp_path_factory.mktemp("data") / "table.csv"
    x = np.random.default_rng(0).normal(size=(80, 2))
    pd.DataFrame({"length": x[:, 0], "sex": np.where(x[:, 1] > 0, "f", "m")}).to_csv(place, index=False)
    return place


@pytest.fixture(scope="module")
def run(table, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "flow"
    data = fivefold.load_data(str(table), condition="sex")
    fivefold.fit("nice", data, out=out, budget="20steps", evaluations=1, hidden=8)
    return out


def same(a, b):
    one, two = (fivefold.load(folder).sample(5, "f", seed=0) for folder in (a, b))
    return one.equals(two)


# --- a hub ----------------------------------------------------------------------------------------


class FakeHub(BaseHTTPRequestHandler):
    """As much of the hub's interface as pushing and pulling a model takes; models are in `models`."""

    models: dict[str, dict[str, bytes]] = {}
    private: dict[str, bool] = {}
    fail = False  # whether commits are refused

    def log_message(self, *words):
        pass

    def answer(self, value, status=200, headers={}):
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_POST(self):
        text = self.body()
        if self.path == "/api/repos/create":
            asked = json.loads(text)
            name = "/".join(part for part in (asked.get("organization") or "me", asked["name"]))
            self.private.setdefault(name, asked.get("private") or asked.get("visibility") == "private")
            self.models.setdefault(name, {})
            return self.answer({"url": f"http://{self.headers['Host']}/{name}", "id": name, "name": name})
        if self.path == "/api/validate-yaml":  # the head of the card
            return self.answer({"errors": [], "warnings": []})
        name, action = re.fullmatch(r"/api/models/(.+?)/(preupload|commit)/main", self.path).groups()
        if action == "preupload":
            files = json.loads(text)["files"]
            return self.answer({"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False,
                                           "oid": None} for f in files]})  # fmt: skip
        if self.fail:
            return self.answer({"error": "no room"}, 500)
        for line in map(json.loads, text.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                self.models[name][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "deletedFile":
                del self.models[name][value["path"]]
        self.answer({"commitUrl": f"http://{self.headers['Host']}/{name}/commit/1", "commitOid": "1" * 40})

    def do_GET(self):
        if found := re.fullmatch(r"/api/models/(.+?)(/revision/.+|(/tree/.+))?", self.path.partition("?")[0]):
            name = found[1]
            if name not in self.models:
                return self.answer({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
            if found[3]:
                tree = [{"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                        for path, content in self.models[name].items()]  # fmt: skip
                return self.answer(tree)
            files = [{"rfilename": path} for path in self.models[name]]
            return self.answer({"id": name, "modelId": name, "sha": "1" * 40, "siblings": files, "private": True})
        asked = re.fullmatch(r"/(.+?)/resolve/\w+/(.+)", self.path.partition("?")[0])
        content = self.models.get(asked[1], {}).get(asked[2]) if asked else None
        if content is None:
            return self.answer({"error": f"no {self.path}"}, 404, {"X-Error-Code": "EntryNotFound"})
        etag = hashlib.sha1(content).hexdigest()
        self.answer(content, 200, {"ETag": f'"{etag}"', "X-Repo-Commit": "1" * 40})

    do_HEAD = do_GET


@pytest.fixture
def hub(monkeypatch, tmp_path):
    pytest.importorskip("huggingface_hub")
    from huggingface_hub import constants

    with served(FakeHub) as address:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(FakeHub, "models", {})
        monkeypatch.setenv("HF_TOKEN", "hf_none")
        yield FakeHub


class served:
    """While this is open a handler answers on the loopback; gives its address."""

    def __init__(self, handler):
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_port}"

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()


def test_through_the_hub(run, hub, tmp_path):
    said = push(run, "hf:me/flow")
    files = hub.models["me/flow"]
    assert set(files) == ALWAYS | {"samples.csv"}
    assert hub.private["me/flow"] is True
    assert "fivefold pull hf:me/flow" in said
    with pytest.raises(RunError, match=r"hf:me/flow holds README.md, run.json, .* already: --force"):
        push(run, "hf:me/flow")
    files["evil.py"], files["pickle.pkl"] = b"raise SystemExit", b"."
    pulled = pull("hf:me/flow", tmp_path / "pulled")
    assert {path.name for path in pulled.iterdir()} == ALWAYS | {"samples.csv"}
    assert same(run, pulled)
    hub.fail, before = True, dict(files)
    try:
        with pytest.raises(RunError, match="cannot write to hf:me/flow"):
            push(run, "hf:me/flow", force=True)
    finally:
        hub.fail = False
    assert files == before
    push(run, "hf:me/flow", force=True, with_training_state=True)
    assert set(TRAINING) <= set(files)
    push(run, "hf:me/flow", force=True)
    assert not set(TRAINING) & set(files)  # the state of other weights is not left beside these
    assert "evil.py" in files


def test_a_hub_that_has_no_such_model(hub, tmp_path):
    with pytest.raises(RunError, match=r"hf:me/nothing holds no run.json and no weights.safetensors"):
        pull("hf:me/nothing", tmp_path / "pulled")
    assert not list(tmp_path.iterdir())


# --- folders and stores ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["folder", "memory"])
def test_through_a_folder_or_a_store(run, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    target = {"folder": str(tmp_path / "shared" / "flow"), "memory": f"memory://{tmp_path.name}/flow"}[kind]
    push(run, target)
    assert set(Store(target).names()) == ALWAYS | {"samples.csv"}
    pulled = pull(target)
    assert pulled.name == "flow"
    assert same(run, tmp_path / "runs" / "flow")
    with pytest.raises(RunError, match=r"holds README.md, run.json, samples.csv, weights.safetensors already"):
        push(run, target)
    with pytest.raises(RunError, match=r"runs/flow exists; choose another --out, or --force"):
        pull(target)
    (pulled / "mine.txt").write_text("")
    pull(target, force=True)
    assert not (pulled / "mine.txt").exists()


def test_over_http(run, tmp_path):
    pytest.importorskip("aiohttp")
    push(run, str(tmp_path / "flow"))
    with served(partial(SimpleHTTPRequestHandler, directory=str(tmp_path))) as address:
        assert same(run, pull(f"{address}/flow", tmp_path / "pulled"))
        with pytest.raises(RunError, match=r"cannot write to http://"):
            push(run, f"{address}/other")


def test_what_resuming_needs_travels_when_asked(run, tmp_path):
    push(run, str(tmp_path / "shared"), with_training_state=True)
    assert not (pull(str(tmp_path / "shared"), tmp_path / "plain") / "training.pt").exists()
    pulled = pull(str(tmp_path / "shared"), tmp_path / "whole", with_training_state=True)
    further = [
        resume(shutil.copytree(place, tmp_path / f"{place.name}-2"), budget="30steps") for place in (run, pulled)
    ]
    for a, b in zip(further[0].state_dict().values(), further[1].state_dict().values(), strict=True):
        assert torch.equal(a, b)


class Breaks(Exception):
    pass


@pytest.mark.parametrize("calls", range(4))
def test_a_broken_push_leaves_no_run(run, calls, monkeypatch):
    files, target = fsspec.filesystem("memory"), f"memory://broken-{calls}/flow"
    usual, left = type(files).put_file, [calls]

    def put_file(self, *arguments, **options):
        if not left[0]:
            usual(self, *arguments, **options)  # the file is there, and perhaps not whole
            raise Breaks("the line broke")
        left[0] -= 1
        return usual(self, *arguments, **options)

    monkeypatch.setattr(type(files), "put_file", put_file)
    with pytest.raises(RunError, match=f"cannot write to {target}: the line broke"):
        push(run, target)
    assert Store(target).names() == []


@pytest.mark.parametrize("damage", ["lost", "cut", "changed"])
def test_a_broken_pull_leaves_no_run_and_what_was_there(run, damage, tmp_path, monkeypatch):
    shared, out = tmp_path / "shared", tmp_path / "out"
    push(run, str(shared))
    pull(str(shared), out)
    weights = shared / "weights.safetensors"
    if damage == "lost":

        def get_file(self, name, *arguments, **options):
            raise Breaks("the line broke")

        monkeypatch.setattr(type(fsspec.filesystem("file")), "get_file", get_file)
    elif damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-4])
    else:
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
    with pytest.raises(RunError, match={"lost": "line broke", "cut": "truncated", "changed": "was changed"}[damage]):
        pull(str(shared), out, force=True)
    assert {path.name for path in tmp_path.iterdir()} == {"shared", "out"}
    assert same(run, out)


def test_nothing_is_replaced_that_is_no_run(run, tmp_path):
    push(run, str(tmp_path / "shared"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("all of it")
    with pytest.raises(RunError, match=r"mine exists; choose another --out$"):
        pull(str(tmp_path / "shared"), tmp_path / "mine", force=True)
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "all of it"
    for copy in (push, pull):
        with pytest.raises(RunError, match="is where the run is already"):
            copy(run, str(run), force=True)
    assert (run / "training.pt").exists()


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("s3://bucket/run", r"cannot reach s3://bucket/run: .*s3fs"),
        ("nonsense://x/y", r"cannot reach nonsense://x/y: .*nonsense"),
    ],
)
def test_places_that_are_not_known(run, target, message):
    if target.startswith("s3"):
        try:
            import s3fs  # noqa: F401
        except ImportError:
            pass
        else:
            pytest.skip("s3fs is here")
    with pytest.raises(RunError, match=message):
        push(run, target)


def test_a_missing_library_of_the_hub_is_a_sentence(run, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(RunError, match=r"huggingface_hub: pip install 'fivefold\[hub\]'"):
        push(run, "hf:me/flow")


# --- cards and trust ------------------------------------------------------------------------------


def test_the_card_has_the_row_with_its_kind(run, tmp_path):
    push(run, str(tmp_path))
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: fivefold\ntags: [fivefold, flow, nice]\n---\n# flow\n")
    assert "The density is exact." in card
    assert re.search(r"\| Log-likelihood \| [−\d.]+ ± [\d.]+ \(exact\) \|", card)
    assert 'fivefold.load("run")' in card
    samples = pd.read_csv(tmp_path / "samples.csv")
    assert list(samples.columns) == ["length", "sex"]
    assert set(samples["sex"]) == {"f", "m"}
    assert len(samples) == 200


def test_a_card_without_the_data_says_why(tmp_path):
    x = np.random.default_rng(0).integers(0, 17, (40, 4, 4)).astype(np.uint8)
    fivefold.fit("vae", x, out=tmp_path / "run", budget="2steps", evaluations=1, width=8)
    push(tmp_path / "run", str(tmp_path / "shared"))
    card = (tmp_path / "shared" / "README.md").read_text()
    assert "![samples](samples.png)" in card
    assert "The density is a lower bound (" in card
    assert "Not measured: " in card
    assert "trained on data in memory" in card


def test_a_system_of_others_travels_only_where_it_is_trusted(tmp_path):
    with package(tmp_path, "theirs", {"toy": source()}):
        run = tmp_path / "run"
        fivefold.fit("theirs.toy", np.random.default_rng(0).normal(size=(40, 2)), out=run, budget="2steps")
        with pytest.raises(Untrusted):
            push(run, str(tmp_path / "shared"))
        push(run, str(tmp_path / "shared"), trust="theirs.toy")
        assert 'trust="theirs.toy"' in (tmp_path / "shared" / "README.md").read_text()
        with pytest.raises(Untrusted):
            pull(str(tmp_path / "shared"), tmp_path / "pulled")
        assert not (tmp_path / "pulled").exists()
        pulled = pull(str(tmp_path / "shared"), tmp_path / "pulled", trust="theirs.toy")
        fivefold.load(pulled, trust="theirs.toy").sample(2)
