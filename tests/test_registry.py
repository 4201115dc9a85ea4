"""Known files and their downloads, from a server on this machine."""

import hashlib
import http.server
import io
import json
import re
import threading
from pathlib import Path

import fsspec
import pytest
from rich.console import Console

from checkpoints_convert import download, kinds, registry
from checkpoints_convert.kinds import KINDS
from tests import conversion, public
from tests.conversion import run

CONTENT = bytes(range(256)) * 9000
DOCS = Path(__file__).parent.parent / "docs" / "checkpoints.md"


class Handler(http.server.BaseHTTPRequestHandler):
    """/file, /missing, /broken (every time), /flaky (the first time), and a bucket with one checkpoint."""

    def do_GET(self):
        self.server.asked.append(self.path)
        path = self.path.split("?")[0]
        if path.startswith("/storage/v1/b/bucket/o"):
            names = [
                "vdm/c/checkpoints-0/ckpt-9.flax",
                "vdm/c/checkpoints-0/ckpt-10.flax",
                "vdm/c/checkpoints-0/x",
            ]
            return self.answer(json.dumps({"items": [{"name": name} for name in names]}).encode())
        if path == "/bucket/vdm/c/checkpoints-0/ckpt-10.flax":
            return self.answer((public.FIXTURES / conversion.FLAX).read_bytes())
        if path == "/edm_ddpmpp_tiny.pkl":
            return self.answer((public.FIXTURES / conversion.PICKLE).read_bytes())
        if path == "/private/file.flax":
            return self.send_error(403)
        cut = path == "/broken" or (path == "/flaky" and self.server.asked.count("/flaky") == 1)
        if path in ("/file", "/broken", "/flaky"):
            return self.answer(CONTENT, len(CONTENT) // 2 if cut else None)
        return self.send_error(404)

    def answer(self, content: bytes, end: int | None = None):
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[:end])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    """A server, its address as `url`, and the paths it was asked for as `asked`."""
    monkeypatch.setattr(download, "PAUSE", 0.0)
    found = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.asked, found.url = [], f"http://127.0.0.1:{found.server_port}"
    monkeypatch.setattr(download, "GOOGLE", found.url)
    thread = threading.Thread(target=found.serve_forever, daemon=True)
    thread.start()
    yield found
    found.shutdown()
    found.server_close()
    thread.join()


def test_a_download_arrives_with_progress_and_its_checksum_is_recorded(server, tmp_path):
    out, announced = io.StringIO(), []
    console = Console(force_terminal=True, width=100, file=out)
    path = download.fetch(
        f"{server.url}/file", tmp_path / "cache", announce=lambda: announced.append(1), console=console
    )
    assert path.read_bytes() == CONTENT and announced == [1]
    sums = (path.parent / "SHA256SUMS").read_text()
    assert sums == f"{hashlib.sha256(CONTENT).hexdigest()}  file\n"
    assert "file: 2.3 of 2.3 MB" in out.getvalue()
    assert sorted(p.name for p in path.parent.iterdir()) == ["SHA256SUMS", "file"]


def test_the_second_time_no_network_is_needed(server, tmp_path):
    path = download.fetch(f"{server.url}/file", tmp_path)
    server.asked.clear()
    assert download.fetch(f"{server.url}/file", tmp_path, announce=pytest.fail) == path
    assert server.asked == []


def test_a_damaged_cache_is_fetched_again_and_compared_with_the_first_download(server, tmp_path):
    path = download.fetch(f"{server.url}/file", tmp_path)
    path.write_bytes(b"damaged")
    assert download.fetch(f"{server.url}/file", tmp_path).read_bytes() == CONTENT
    (path.parent / "SHA256SUMS").write_text(f"{'0' * 64}  file\n")
    with pytest.raises(ValueError, match=r"another SHA-256 than expected \(expected 0000"):
        download.fetch(f"{server.url}/file", tmp_path)


def test_a_wrong_checksum_leaves_no_file(server, tmp_path):
    with pytest.raises(ValueError, match=rf"expected {'1' * 64}, got {hashlib.sha256(CONTENT).hexdigest()}"):
        download.fetch(f"{server.url}/file", tmp_path, sha256="1" * 64)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_a_missing_file_is_named_and_not_asked_for_again(server, tmp_path):
    with pytest.raises(ValueError, match=r"answered 404 Not Found for .*/missing; check the address"):
        download.fetch(f"{server.url}/missing", tmp_path)
    assert server.asked == ["/missing"]


def test_a_broken_download_is_tried_again_and_leaves_no_file(server, tmp_path):
    with pytest.raises(ValueError, match=r"broke off 3 times; .* by hand"):
        download.fetch(f"{server.url}/broken", tmp_path)
    assert server.asked == ["/broken"] * 3
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]
    assert download.fetch(f"{server.url}/flaky", tmp_path).read_bytes() == CONTENT


def test_without_a_network_one_sentence_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(download, "PAUSE", 0.0)
    with pytest.raises(
        ValueError, match=r"no connection to 127.0.0.1:1; download it by hand and give the file"
    ):
        download.fetch("http://127.0.0.1:1/x.pkl", tmp_path)


def test_a_bucket_s_newest_checkpoint_is_taken_and_kept(server, tmp_path):
    path = download.fetch("gs://bucket/vdm/c/checkpoints-0", tmp_path)
    assert path.name == "ckpt-10.flax"
    assert path.read_bytes() == (public.FIXTURES / conversion.FLAX).read_bytes()
    server.asked.clear()
    assert download.fetch("gs://bucket/vdm/c/checkpoints-0", tmp_path) == path and not server.asked


def test_fsspec_is_asked_where_the_mirror_refuses_and_for_other_addresses(server, tmp_path, monkeypatch):
    with fsspec.open("memory://bucket/file.flax", "wb") as file:
        file.write(CONTENT)
    assert download.fetch("memory://bucket/file.flax", tmp_path).read_bytes() == CONTENT
    real = fsspec.open
    asked = []

    def instead(url, mode):
        asked.append(url)
        return real("memory://bucket/file.flax", mode)

    monkeypatch.setattr(fsspec, "open", instead)
    assert download.fetch("gs://private/file.flax", tmp_path).read_bytes() == CONTENT
    assert asked == ["gs://private/file.flax"] and server.asked == ["/private/file.flax"]


def test_a_url_is_converted_like_a_file(server, tmp_path):
    url = f"{server.url}/edm_ddpmpp_tiny.pkl"
    assert run(url, tmp_path / "a", "--cache", tmp_path / "cache", "--no-check") == 0
    assert run(public.FIXTURES / conversion.PICKLE, tmp_path / "b", "--no-check") == 0
    assert conversion.metadata(tmp_path / "a") == conversion.metadata(tmp_path / "b")


def test_the_licence_is_shown_before_the_first_download_only(server, tmp_path, capsys, monkeypatch):
    entry = registry.find("edm-cifar10-32x32-uncond-vp")._replace(url=f"{server.url}/edm_ddpmpp_tiny.pkl")
    monkeypatch.setitem(registry.ENTRIES, entry.name, entry)
    for name in ("a", "b"):
        assert run(entry.name, tmp_path / name, "--cache", tmp_path / "cache", "--no-check") == 0
        shown = capsys.readouterr().out
        assert shown.count("CC BY-NC-SA 4.0") == (2 if name == "a" else 1)
        assert shown.startswith("downloading") == (name == "a")
        assert "data set      CIFAR-10" in shown
    assert len(server.asked) == 1


# The registry


def test_entries_are_complete_and_unambiguous():
    entries = list(registry.ENTRIES.values())
    assert len(entries) >= 24
    for entry in entries:
        assert entry.kind in (*KINDS, "fid-reference") and entry.licence and entry.data_set, entry.name
        assert bool(entry.url) != bool(entry.by_hand), entry.name
        assert entry.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", entry.sha256)
    urls = [entry.url for entry in entries if entry.url]
    assert len(urls) == len(set(urls))


def test_the_name_of_the_inception_file_agrees_with_its_checksum():
    entry = registry.find("fid-inception")
    assert re.search(r"-([0-9a-f]{8})\.pth$", entry.url)[1] == entry.sha256[:8]


def test_every_nvidia_file_has_nvidia_s_licence():
    nvidia = [entry for entry in registry.ENTRIES.values() if "nvidia" in entry.url]
    assert len(nvidia) == 21 and all("CC BY-NC-SA 4.0" in entry.licence for entry in nvidia)


def test_the_page_names_every_file():
    page = DOCS.read_text()
    assert [name for name in registry.ENTRIES if f"`{name}`" not in page] == []


def test_an_unknown_name_offers_the_nearest(capsys, tmp_path):
    assert run("edm-cifar10", tmp_path / "x") == 1
    assert "did you mean 'edm-cifar10-32x32-uncond-vp'?" in capsys.readouterr().err
    assert run("vdm-cifar10-augmented", tmp_path / "x") == 1
    assert "did you mean 'vdm-cifar10-aug'?" in capsys.readouterr().err


def test_files_that_no_program_can_fetch_say_how_to_get_them(capsys, tmp_path):
    assert run("idode-cifar10-vp", tmp_path / "x") == 1
    error = capsys.readouterr().err
    assert "drive.google.com" in error and "--name idode-cifar10-vp" in error


def test_the_name_of_a_local_file_gives_kind_and_data_set(tmp_path):
    path = conversion.flax_state("idode_vp_tiny", tmp_path)
    assert run(path, tmp_path / "out", "--size", 8, "--name", "idode-cifar10-vp", "--no-check") == 0
    record = conversion.metadata(tmp_path / "out")
    assert record["source"]["kind"] == "idode-vp" and record["data_set"] == "CIFAR-10"
    assert record["expert"]["prediction"] == "velocity" and record["source"]["name"] == "idode-cifar10-vp"
    assert record["licence"].startswith("Apache-2.0 (code); none stated for the weights")


def test_a_local_file_that_is_not_the_named_one_is_refused(tmp_path, capsys):
    assert run(public.FIXTURES / "torch_zip_mixed.pth", tmp_path / "x", "--name", "fid-inception") == 1
    assert "another SHA-256 (expected 6726825d" in capsys.readouterr().err


def test_the_list_shows_every_file_with_its_network_and_licence(capsys):
    assert run("--list") == 0
    shown = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    shown = {name.strip(): about for name, about in shown.items()}
    assert list(shown) == list(registry.ENTRIES)
    for name, entry in registry.ENTRIES.items():
        assert entry.data_set in shown[name] and entry.network in shown[name] and entry.network, name
        assert entry.short_licence in shown[name], name
    assert "DDPM++, EDM preconditioning" in shown["edm-cifar10-32x32-uncond-vp"]
    assert "none stated for the weights" in shown["idode-cifar10-vp"]


def test_the_page_and_the_list_agree_on_licences():
    rows = [line for line in DOCS.read_text().splitlines() if line.startswith("| `")]
    for row in rows:
        names = re.findall(r"`([a-z0-9-]+)`", row)
        licences = {registry.ENTRIES[name].short_licence for name in names if name in registry.ENTRIES}
        assert not licences or licences == {row.split("|")[-2].strip()}, row


def test_a_known_file_that_cannot_be_converted_is_refused_with_the_reason(capsys, tmp_path):
    name = "baseline-imagenet-64x64-cond-adm"
    for arguments in ((name, tmp_path / "x"), ("--inspect", name), ("a.pkl", tmp_path / "x", "--name", name)):
        assert run(*arguments) == 1
        error = capsys.readouterr().err
        assert f"{name} cannot be converted" in error and "iDDPMPrecond" in error and error.count("\n") == 1


def test_every_kind_has_a_maker():
    assert set(kinds._MAKERS) == set(registry.KINDS)


def test_an_address_is_known_as_a_whole_or_by_a_name_that_tells():
    known = registry.find("lpips-alex")
    assert registry.by_url(known.url) is known
    # Version 0.0 has files of the same names.
    assert registry.by_url(known.url.replace("v0.1", "v0.0")) is None
    edm = registry.find("edm-cifar10-32x32-uncond-vp")
    assert registry.by_url("https://mirror.example/" + edm.url.rsplit("/", 1)[-1]) is edm
