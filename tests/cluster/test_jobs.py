"""What is known of a cluster over its dashboard's address. What needs one is in tests/stack/test_clusters.py."""

from __future__ import annotations

import http.server
import threading
import zipfile
from pathlib import Path

import pytest

from rlkit.cluster.jobs import MOST, Jobs, joined, pack
from rlkit.errors import ClusterError


def test_a_file_that_grew_is_joined_at_its_last_whole_line() -> None:
    known = b"a 1\nb 2\nc 3\n"
    assert joined(known, b"b 2\nc 3\nd 4\ne") == b"a 1\nb 2\nc 3\nd 4\ne"
    assert joined(known, b"c 3\n") == known
    assert joined(known + b"d", b"c 3\nd 4\n") == known + b"d 4\n", "a half line is asked for again"
    assert joined(known, b"d 4\ne 5\n") is None, "more lines have come than were asked for"
    assert joined(b"c 3\n", b"xc 3\nd\n") is None, "the end of a longer line is no line"
    assert joined(b"", b"a 1\n") is None


def test_what_a_configuration_names_travels_and_weights_and_ignored_files_do_not(tmp_path: Path) -> None:
    (folder := tmp_path / "project").mkdir()
    (folder / ".gitignore").write_text("*.jsonl\n")
    for name in (
        "c.yaml",
        "rows.jsonl",
        "other.jsonl",
        "runs/old/metrics.jsonl",
        "model/config.json",
        "model/x.safetensors",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    names = pack(folder, tmp_path / "a.zip", [folder / "rows.jsonl"])
    assert set(names) >= {"c.yaml", "rows.jsonl", "model/config.json"}
    assert not {"other.jsonl", "runs/old/metrics.jsonl", "model/x.safetensors"} & set(names)
    whole = pack(folder, tmp_path / "b.zip", [folder / "model", folder / "rows.jsonl"])
    assert set(whole) - set(names) == {"model/x.safetensors"}
    assert zipfile.ZipFile(tmp_path / "b.zip").read("model/x.safetensors") == b"model/x.safetensors"


def test_too_much_is_refused_with_the_largest_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder := tmp_path / "project").mkdir()
    (folder / "big.bin").write_bytes(bytes(range(256)) * 64)
    monkeypatch.setattr("rlkit.cluster.jobs.MOST", 100)
    with pytest.raises(ClusterError, match=r"a Ray job takes at most .* largest are big.bin .*\.rayignore"):
        pack(folder, tmp_path / "a.zip")
    assert MOST > 100


def test_what_is_no_dashboard_is_named() -> None:
    class Nothing(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, *rest: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Nothing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        with pytest.raises(ClusterError, match=rf"no Ray dashboard answers at {address} \(Version check returned 404"):
            Jobs(address)
        server.shutdown()
    with pytest.raises(ClusterError, match=r"no Ray dashboard answers at 127.0.0.1:1 .* its default port is 8265"):
        Jobs("127.0.0.1:1")
