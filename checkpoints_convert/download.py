"""Files from the network, once: into a cache, with progress, whole or not at all.

A URL has a folder of its own in the cache, with the file and a line in sha256sum's format beside it. The
checksum is the registry's where it has one, else that of the first download; from then on the file is
compared with it, and no network is needed. Public gs:// files come from their https mirror, without
any credentials; where that refuses, and for every other kind of URL, fsspec is asked.
"""

import hashlib
import os
import pathlib
import re
import time
import urllib.parse
from collections.abc import Callable

import pooch
import requests
import rich.progress
from rich.console import Console

GOOGLE = "https://storage.googleapis.com"
RETRIES = 3
PAUSE = 1.0
TIMEOUT = 30
# Seconds between two lines of progress where there is no terminal.
LINE_EVERY = 10.0
pooch.get_logger().setLevel("WARNING")  # progress is shown here


def cache_folder() -> pathlib.Path:
    """Where downloads are kept unless told otherwise: jaxmerge/checkpoints in the user's cache folder."""
    return pathlib.Path(pooch.os_cache("jaxmerge")) / "checkpoints"


def is_url(source: str) -> bool:
    """Whether a SOURCE is a URL and not a path or a short name."""
    return re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://", source) is not None


def fetch(
    url: str,
    cache: str | os.PathLike,
    *,
    sha256: str | None = None,
    announce: Callable[[], None] = lambda: None,
    console: Console | None = None,
) -> pathlib.Path:
    """The file of a URL, from the cache or from the network.

    Args:
        url: https://, http://, gs:// (a file, or a folder with ckpt-N.flax files), or whatever fsspec knows.
        cache: folder of all downloads.
        sha256: the file's checksum, where it is known.
        announce: called before bytes are fetched, not where the cache has the file.
        console: where progress is shown.

    Returns:
        The file in the cache, its checksum compared.

    Raises:
        ValueError: no such file, no network, a broken download or another checksum; says what to do.
    """
    folder = pathlib.Path(cache).expanduser() / hashlib.sha256(url.encode()).hexdigest()[:16]
    recorded, name = _record(folder)
    expected = sha256 or recorded
    if name and expected and _matches(folder / name, expected):
        return folder / name
    announce()
    address = _newest(url) if url.startswith("gs://") and not _file_name(url).endswith(".flax") else url
    name = _file_name(address)
    console = console or Console(stderr=True)
    for attempt in range(RETRIES):
        try:
            with _Bar(console, name) as bar:
                pooch.retrieve(
                    address, expected, fname=name, path=folder, downloader=_downloader(address, bar)
                )
            break
        except Exception as error:
            again = _worth_another_try(error) and attempt + 1 < RETRIES
            if not again:
                raise ValueError(_sentence(error, url, name)) from error
            time.sleep(PAUSE * (attempt + 1))
    found = expected or _digest(folder / name)
    (folder / "SHA256SUMS").write_text(f"{found}  {name}\n")
    return folder / name


def _record(folder: pathlib.Path) -> tuple[str | None, str | None]:
    try:
        found = re.fullmatch(r"([0-9a-f]{64})  ([^/\\\n]+)\n", (folder / "SHA256SUMS").read_text())
    except (OSError, UnicodeDecodeError):
        return None, None
    return (found[1], found[2]) if found else (None, None)


def _digest(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _matches(path: pathlib.Path, expected: str) -> bool:
    return path.is_file() and _digest(path) == expected


def _file_name(url: str) -> str:
    last = urllib.parse.unquote(urllib.parse.urlsplit(url).path.rstrip("/").rsplit("/", 1)[-1])
    return re.sub(r"[^\w.+=-]", "_", last).lstrip(".") or "checkpoint"


def _mirror(url: str) -> str:
    """The https address of a gs:// file."""
    return f"{GOOGLE}/{urllib.parse.quote(url.removeprefix('gs://'))}"


def _newest(url: str) -> str:
    """The newest ckpt-N.flax of a gs:// folder."""
    bucket, _, prefix = url.removeprefix("gs://").partition("/")
    address = f"{GOOGLE}/storage/v1/b/{bucket}/o"
    try:
        answer = requests.get(
            address, params={"prefix": prefix.rstrip("/") + "/", "fields": "items(name)"}, timeout=TIMEOUT
        )
        answer.raise_for_status()
        names = [item["name"] for item in answer.json().get("items", [])]
    except Exception as error:
        raise ValueError(_sentence(error, url, url)) from error
    numbered = {int(m[1]): name for name in names if (m := re.search(r"/ckpt-(\d+)\.flax$", name))}
    if not numbered:
        raise ValueError(f"{url} has no file ckpt-N.flax; give the address of a checkpoint or of its folder.")
    return f"gs://{bucket}/{numbered[max(numbered)]}"


def _downloader(url: str, bar: "_Bar") -> Callable:
    over_http = pooch.HTTPDownloader(progressbar=bar, chunk_size=2**20, timeout=TIMEOUT)
    if url.startswith(("http://", "https://")):
        return over_http

    def over_mirror(url, output_file, pooch):
        try:
            over_http(_mirror(url), output_file, pooch)
        except requests.HTTPError as error:
            if error.response.status_code not in (401, 403):
                raise
            _over_fsspec(url, output_file, bar)

    return over_mirror if url.startswith("gs://") else lambda url, out, pooch: _over_fsspec(url, out, bar)


def _over_fsspec(url: str, output_file: str, bar: "_Bar") -> None:
    try:
        import fsspec
    except ImportError as error:
        raise ValueError(f"{url} needs fsspec; pip install jaxmerge[gcs], or download the file.") from error
    with fsspec.open(url, "rb") as source, open(output_file, "wb") as target:
        bar.total = getattr(source, "size", 0) or 0
        while chunk := source.read(2**20):
            target.write(chunk)
            bar.update(len(chunk))


def _worth_another_try(error: Exception) -> bool:
    if isinstance(error, requests.HTTPError):
        return error.response.status_code >= 500
    return isinstance(error, requests.RequestException)


def _sentence(error: Exception, url: str, name: str) -> str:
    by_hand = "download it by hand and give the file instead of the URL"
    host = urllib.parse.urlsplit(url).netloc or url
    if isinstance(error, requests.HTTPError):
        code, reason = error.response.status_code, error.response.reason
        return f"{host} answered {code} {reason} for {url}; check the address."
    if isinstance(
        error, (requests.exceptions.ChunkedEncodingError, requests.exceptions.ContentDecodingError)
    ):
        return f"the download of {url} broke off {RETRIES} times; try again later, or {by_hand}."
    if isinstance(error, (requests.ConnectionError, requests.Timeout)):
        return f"there is no connection to {host}; {by_hand} ({url})."
    if isinstance(error, ValueError) and "does not match the known hash" in str(error):
        found = re.findall(r"[0-9a-f]{64}", str(error))
        return (
            f"{name} has another SHA-256 than expected (expected {found[0]}, got {found[-1]}), so it is not "
            "used; its owner may have replaced it, or someone on the way: compare with a source that you trust."
        )
    reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return f"cannot fetch {url}: {reason}; check the address, or {by_hand}."


class _Bar:
    """What pooch calls while it downloads: a bar on a terminal, now and then a line elsewhere."""

    def __init__(self, console: Console, name: str):
        self.total, self._done, self._name, self._console = 0, 0, name, console
        self._start = self._shown = time.perf_counter()
        columns = (
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.DownloadColumn(),
            rich.progress.TransferSpeedColumn(),
            rich.progress.TimeRemainingColumn(),
        )
        bars = rich.progress.Progress(*columns, console=console, transient=True)
        self._bars = bars if console.is_terminal else None

    def __enter__(self):
        if self._bars is not None:
            self._bars.start()
            self._task = self._bars.add_task(self._name, total=None)
        return self

    def __exit__(self, *_):
        if self._bars is not None:
            self._bars.stop()
        if self._done:
            self._line()

    def update(self, n: int) -> None:
        """n more bytes have arrived."""
        self._done += n
        now = time.perf_counter()
        if self._bars is not None:
            self._bars.update(self._task, completed=self._done, total=self.total or None)
        elif now - self._shown >= LINE_EVERY:
            self._shown = now
            self._line()

    def reset(self) -> None:
        """The file is complete; pooch starts the bar anew to fill it, which shows nothing new here."""
        self._done = 0 if self.total else self._done

    def close(self) -> None:
        """Nothing to do: the context closes the bar."""

    def _line(self) -> None:
        seconds = time.perf_counter() - self._start
        of = f" of {self.total / 1e6:.1f}" if self.total else ""
        text = (
            f"{self._name}: {self._done / 1e6:.1f}{of} MB, {self._done / 1e6 / max(seconds, 1e-9):.3g} MB/s"
        )
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)
