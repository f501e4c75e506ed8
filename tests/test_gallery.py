"""Each example of the gallery runs: with few images here, as it stands where marked slow."""

from __future__ import annotations

import json
import os
import re
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.runtime.sink_services import free_port
from tests.waiting import LONG_S, wait_for

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"

pytest.importorskip("elpv_dataset", reason="needs real images: pip install 'edgead[demo]'")
pytest.importorskip("torch")

Example = Callable[..., str]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Few of the images that `examples/images.py` makes, of the same cells."""
    folder = tmp_path_factory.mktemp("gallery") / "parts"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        import images

        images.make(folder, train=12, test=4)
    return folder


@pytest.fixture(scope="module")
def mono(parts: Path) -> Path:
    """A bundle of one product, ``mono.edgead``."""
    import edgead

    bundle = parts.parent / "mono.edgead"
    edgead.fit(parts / "mono", size=64, settings={"bank_size": 256}).export(bundle, images=[parts / "mono" / "test"])
    return bundle


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Example:
    """Runs an example in this process, in an empty folder, and returns what it prints."""

    def call(name: str, *arguments: object, code: int = 0) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(EXAMPLES)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        ended: object = 0
        try:
            runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        except SystemExit as ending:
            ended = ending.code or 0
        said = capsys.readouterr()
        assert ended == code, f"{ended}\n{said.out}{said.err}"
        return said.out + said.err

    return call


def picture(path: Path) -> None:
    """Assert that a picture is one for a page: small, and not of one colour."""
    assert path.stat().st_size < 60_000
    with Image.open(path) as image:
        assert np.asarray(image.convert("L")).std() > 10


def test_images_lie_as_a_users_own(example: Example, tmp_path: Path) -> None:
    said = example("images.py", tmp_path / "parts")
    assert re.search(r"mono/train/good: 40 images", said)
    assert len(list((tmp_path / "parts").glob("modules/test/defective/*.png"))) == 10
    with Image.open(tmp_path / "parts" / "modules" / "train" / "good" / "000.png") as module:
        assert module.size == (1200, 900)
    assert "is there already" in str(example_failure(example, tmp_path))


def example_failure(example: Example, tmp_path: Path) -> str:
    with pytest.raises(AssertionError) as caught:
        example("images.py", tmp_path / "parts")
    return str(caught.value)


def test_many_products(example: Example, parts: Path, tmp_path: Path) -> None:
    said = example("many_products.py", parts / "mono", parts / "poly", "--unknown", parts / "modules" / "test" / "good")
    for product in ("mono", "poly"):
        row = re.search(rf"^{product} +(\d) of (\d) +(\d) of 4 +(.*)$", said, re.MULTILINE)
        assert row is not None, said
        counts = dict(re.findall(r"(\w+) (\d)", row[4]))
        assert int(counts[product]) >= 6, said  # of eight
    assert "2 of 2 not inspected" in said
    picture(tmp_path / "many_products.png")


def test_tiles(example: Example, parts: Path, tmp_path: Path) -> None:
    said = example("tiles.py", parts / "modules", "--tiles", "3x4", "--size", "96")
    assert said.count("image AUROC") == 2
    assert "3x4 tiles, each made 96 x 96" in said
    picture(tmp_path / "tiles.png")
    assert "error: " in example("tiles.py", parts / "modules", "--tiles", "three", code=2)


def test_own_backbone(example: Example, parts: Path, tmp_path: Path) -> None:
    said = example("own_backbone.py", parts / "mono", parts / "poly")
    assert re.search(r"resnet10t@own_backbone.pth: image AUROC \d\.\d+", said)
    from edgead.runtime import Bundle

    with Bundle.open(tmp_path / "own_backbone.edgead") as bundle:
        assert bundle.manifest.provenance["backbone"]["name"] == "resnet10t"


@pytest.mark.slow
def test_compare_detectors(example: Example, parts: Path, tmp_path: Path) -> None:
    said = example("compare_detectors.py", parts / "mono", "--detectors", "patchcore,fre", "-o", "compared")
    assert re.search(r"^patchcore +\d\.\d{3}", said, re.MULTILINE)
    assert re.search(r"^fre +\d\.\d{3}", said, re.MULTILINE)
    assert (tmp_path / "compared" / "compare.html").is_file()


def test_a_plc_names_the_part_triggers_and_decides(example: Example, parts: Path, mono: Path) -> None:
    pytest.importorskip("asyncua", reason="needs asyncua: pip install 'edgead[opcua]'")
    from edgead.runtime import Inspector, read_image

    said = example("plc_handshake.py", mono, parts / "mono" / "test")
    rows = re.findall(r"^ *P(\d+) +(\w+) +([\d.]+) +(opens|closed) +(\S+)$", said, re.MULTILINE)
    files = {path.name: path for path in (parts / "mono" / "test").rglob("*.png")}
    assert len(rows) == len(files) == 8
    with Inspector.open(mono) as inspect:
        for _, decision, score, gate, name in rows:
            expected = inspect(read_image(files[name]))
            assert (decision, gate == "opens") == (expected.decision.value, expected.decision == "OK")
            assert float(score) == pytest.approx(expected.score, abs=0.01)
    assert {gate for *_, gate, _ in rows} == {"opens", "closed"}
    assert "the heartbeat moves" in said


def test_a_plc_whose_station_does_not_start(example: Example, parts: Path, tmp_path: Path) -> None:
    pytest.importorskip("asyncua", reason="needs asyncua: pip install 'edgead[opcua]'")
    (tmp_path / "broken.edgead").write_bytes(b"nothing")
    assert "did not start" in example("plc_handshake.py", tmp_path / "broken.edgead", parts / "mono" / "test", code=2)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the station's process in /proc")
def test_a_plc_whose_station_is_killed_opens_no_gate(parts: Path, mono: Path, tmp_path: Path) -> None:
    pytest.importorskip("asyncua", reason="needs asyncua: pip install 'edgead[opcua]'")
    (tmp_path / "many").mkdir()
    good = min((parts / "mono" / "test" / "good").iterdir())
    for number in range(400):  # so that it is killed before the last of them
        (tmp_path / "many" / f"{number:03d}.png").symlink_to(good)
    command = [sys.executable, "-u", str(EXAMPLES / "plc_handshake.py"), str(mono), str(tmp_path / "many")]
    said = tmp_path / "said.txt"
    with said.open("wb") as stream:
        child = subprocess.Popen(
            command, stdout=stream, stderr=stream, env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=tmp_path
        )
    try:
        wait_for(lambda: "P00002" in said.read_text() or child.poll() is not None)
        tasks = Path(f"/proc/{child.pid}/task").glob("*/children")
        (station,) = {int(pid) for task in tasks for pid in task.read_text().split()}
        os.kill(station, signal.SIGKILL)
        assert child.wait(LONG_S) == 3, said.read_text()
    finally:
        child.kill()
        child.wait()
    assert "the station is lost" in said.read_text()
    assert "P00399" not in said.read_text()


def test_import_anomalib(example: Example, parts: Path, tmp_path: Path) -> None:
    """The checkpoint is laid out as anomalib 2.7 does; `test_importing_real.py` compares that with anomalib itself."""
    import torch

    from edgead.runtime.imaging.decode import find_images, read_image
    from edgead.runtime.imaging.preprocess import resize
    from tests.edgead.anomalib_like import TINY, Setup, checkpoint, fitted, save

    def pictures(folder: Path) -> torch.Tensor:
        return torch.from_numpy(np.stack([resize(read_image(file), *setup.size) for file in find_images([folder])]))

    setup = Setup("patchcore", TINY)
    model = fitted(setup, pictures(parts / "mono" / "train"), pictures(parts / "mono" / "test"))
    save(checkpoint(model), tmp_path / "model.ckpt")
    said = example("import_anomalib.py", "model.ckpt", parts / "mono")
    assert f"anomalib's threshold {float(model.threshold):.3f}" in said
    assert said.count("of 4 defects pass") == said.count("of 2 good parts are rejected") == 2
    (tmp_path / "other.ckpt").write_bytes(b"nothing")
    assert "error: " in example("import_anomalib.py", "other.ckpt", parts / "mono", code=2)


@pytest.fixture
def server(mono: Path, tmp_path: Path) -> Iterator[str]:
    """``edgead serve`` as a process; HOST:PORT of its gRPC."""
    target = f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "edgead", "serve", str(mono), "--grpc", target]
    command += ["--rest", f"127.0.0.1:{free_port()}"]
    with (tmp_path / "serve.txt").open("wb") as said:
        child = subprocess.Popen(command, stdout=said, stderr=said, env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        import tritonclient.grpc as triton

        client = triton.InferenceServerClient(target)

        def ready() -> bool:
            assert child.poll() is None, (tmp_path / "serve.txt").read_text()
            try:
                return bool(client.is_server_ready())
            except triton.InferenceServerException:
                return False

        wait_for(ready)
        client.close()
        yield target
    finally:
        child.terminate()
        child.wait(LONG_S)


def test_ask_server(example: Example, parts: Path, server: str) -> None:
    said = example("ask_server.py", server, "mono", parts / "mono" / "test")
    assert len(re.findall(r"\.png: (?:OK|ANOMALY) \d+\.\d+ \(threshold", said)) == 8
    with pytest.raises(AssertionError, match="the server says"):
        example("ask_server.py", server, "another", parts / "mono" / "test")


def test_triton_repository(example: Example, parts: Path, tmp_path: Path) -> None:
    pytest.importorskip("tritonclient.grpc", reason="needs pip install 'edgead[serve]'")
    from google.protobuf import text_format
    from tritonclient.grpc.model_config_pb2 import ModelConfig

    import edgead

    model = edgead.fit(parts / "mono", size=64, settings={"bank_size": 256})
    model.save(tmp_path / "mono.model")
    arguments = ("triton_repository.py", tmp_path / "mono.model", "models", parts / "mono" / "test")
    said = example(*arguments)
    pairs = re.findall(r"score ([\d.]+) by the exported graph, ([\d.]+) by the model", said)
    assert len(pairs) >= 4
    assert all(float(exported) == pytest.approx(float(own), rel=1e-3) for exported, own in pairs)
    config = text_format.Parse((tmp_path / "models" / "mono" / "config.pbtxt").read_text(), ModelConfig())
    assert [list(one.dims) for one in config.input] == [[64, 64, 3]]
    assert [one.name for one in config.output] == ["score", "map"]
    assert float(config.parameters["threshold"].string_value) == model.threshold.value
    assert (tmp_path / "models" / "mono" / "1" / "model.onnx").is_file()
    assert "exists and is not empty" in example(*arguments, code=2)


def test_images_go_to_the_camera_loop_in_cpp(parts: Path, mono: Path, tmp_path: Path) -> None:
    from edgead.runtime import Inspector, read_image
    from tests.runtime.capi.building import build, need_compilers
    from tests.runtime.capi.languages import build_program
    from tests.runtime.capi.wrapper import wheel_library

    need_compilers()
    program = build_program("C++", build() / "installed", tmp_path)
    folder = parts / "mono" / "test"
    command = [sys.executable, str(EXAMPLES / "capi" / "frames.py"), str(folder)]
    frames = subprocess.run(command, capture_output=True, check=True).stdout
    library = wheel_library()
    environment = {**os.environ, **program.environment}
    done = subprocess.run(
        [str(tmp_path / "project" / "build" / "camera_cpp"), str(mono), str(library)],
        input=frames,
        capture_output=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with Inspector.open(mono, backend="onnxruntime") as inspect:
        expected = [inspect(read_image(path)) for path in sorted(folder.rglob("*.png"))]
    rows = [line.split() for line in done.stdout.decode().splitlines()]
    assert [row[0] for row in rows] == [one.decision.value for one in expected]
    assert [float.fromhex(row[1]) for row in rows] == [one.score for one in expected]


def test_own_camera_loop(example: Example, parts: Path, mono: Path, tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2", reason="needs pip install 'edgead[camera]'")
    from edgead.runtime import Inspector

    cells = sorted((parts / "mono" / "test").rglob("*.png"))
    video = cv2.VideoWriter(str(tmp_path / "line.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 5, (300, 300))
    for path in cells:
        video.write(cv2.imread(str(path)))
    video.release()
    said = example("own_camera_loop.py", mono, "line.avi")
    assert "8 frames" in said
    # What the video shows is not to the bit what was written.
    reader = cv2.VideoCapture(str(tmp_path / "line.avi"))
    with Inspector.open(mono) as inspect:
        expected = [inspect(cv2.cvtColor(reader.read()[1], cv2.COLOR_BGR2RGB)).decision for _ in cells]
    stopped = [int(number) for number in re.findall(r"^frame (\d+): ANOMALY", said, re.MULTILINE)]
    assert stopped == [index for index, decision in enumerate(expected) if decision == "ANOMALY"]
    assert "cannot be opened" in example("own_camera_loop.py", mono, "none.avi", code=2)
    assert "usage" in example("own_camera_loop.py", code=2)
    (tmp_path / "broken.edgead").write_bytes(b"nothing")
    assert "error: " in example("own_camera_loop.py", "broken.edgead", "line.avi", code=2)


def test_train_and_export(example: Example, parts: Path, tmp_path: Path) -> None:
    said = example("train_and_export.py", parts / "mono", "mono.edgead")
    assert re.search(r"^onnxruntime: 0 of \d+ decisions changed$", said, re.MULTILINE)
    assert (tmp_path / "mono.edgead").is_file()
    assert "error: " in example("train_and_export.py", tmp_path / "nothing", "mono.edgead", code=2)


def programs() -> list[Path]:
    return sorted(path for path in EXAMPLES.rglob("*") if path.suffix in (".py", ".ipynb"))


@pytest.mark.parametrize("path", programs(), ids=lambda path: path.name)
def test_each_says_how_to_run_it_and_stands_in_both_lists(path: Path) -> None:
    text = path.read_text()
    head = "".join(json.loads(text)["cells"][0]["source"]) if path.suffix == ".ipynb" else text.split('"""')[1]
    assert path.suffix == ".ipynb" or f"python examples/{path.relative_to(EXAMPLES).as_posix()}" in head
    for page in (EXAMPLES / "README.md", ROOT / "docs" / "examples.md"):
        assert path.name in page.read_text(), page
