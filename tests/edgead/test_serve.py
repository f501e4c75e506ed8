"""``edgead serve``: asked by NVIDIA's clients, over both transports, and by peers that get the protocol wrong."""

from __future__ import annotations

import json
import signal
import threading
import urllib.request
from urllib.error import HTTPError

import numpy as np
import pytest

from edgead.runtime.errors import ConfigError
from edgead.runtime.imaging.decode import read_image
from edgead.runtime.inspection.inspector import Inspector
from edgead.runtime.serving.server import InferenceServer
from tests.waiting import LONG_S, lines

grpcclient = pytest.importorskip("tritonclient.grpc", reason="needs pip install 'edgead[serve]'")
httpclient = pytest.importorskip("tritonclient.http", reason="needs pip install 'tritonclient[http]'")

NUMBERS, TEXTS = ("score", "threshold", "p_value"), ("decision", "category", "reason", "bundle")


@pytest.fixture(scope="module")
def served(plate_bundle):
    with (
        Inspector.open(plate_bundle, backend="onnxruntime") as inspector,
        InferenceServer(inspector, "127.0.0.1:0", "127.0.0.1:0") as server,
    ):
        assert server.self_test() == []
        yield server, inspector


def clients(server):
    host = server.url.removeprefix("http://").rstrip("/")
    return {
        "rest": (httpclient, httpclient.InferenceServerClient(host, network_timeout=LONG_S)),
        "grpc": (grpcclient, grpcclient.InferenceServerClient(server.target)),
    }


@pytest.fixture(params=["rest", "grpc"])
def peer(request, served):
    library, client = clients(served[0])[request.param]
    yield library, client
    client.close()


def ask(peer, name, array, datatype, outputs=None, model="plate", **options):
    library, client = peer
    given = library.InferInput(name, list(array.shape), datatype)
    given.set_data_from_numpy(array)
    wanted = None if outputs is None else [library.InferRequestedOutput(one) for one in outputs]
    return client.infer(model, [given], outputs=wanted, **options)


def same(answer, expected):
    """Compare an answer with results of the inspector, to the bit."""
    for name in NUMBERS:
        values = [getattr(one, name) for one in expected]
        want = np.array([np.nan if value is None else value for value in values], np.float64)
        assert answer.as_numpy(name).tobytes() == want.tobytes(), name
    assert [word.decode() for word in answer.as_numpy("decision")] == [one.decision.value for one in expected]
    for name in TEXTS[1:]:
        assert [word.decode() for word in answer.as_numpy(name)] == [getattr(one, name) or "" for one in expected]
    maps = np.stack([one.map for one in expected])
    assert answer.as_numpy("map").tobytes() == maps.tobytes()
    assert answer.as_numpy("map").shape == maps.shape


def test_the_answer_is_what_edgead_run_decides(served, peer, edgead, plate, plate_bundle, tmp_path):
    _, inspector = served
    results = tmp_path / "results.jsonl"
    arguments = ["--backend", "onnxruntime", "--sink", results]
    assert edgead("run", plate_bundle, "--source", plate / "test", *arguments).code == 0
    rows = lines(results)
    assert len(rows) == 8
    assert {row["decision"] for row in rows} == {"OK", "ANOMALY"}
    for row in rows:
        path = plate / "test" / row["name"]
        image = read_image(path)
        answer = ask(peer, "image", image, "UINT8")
        same(answer, [inspector(image)])
        assert answer.as_numpy("decision")[0].decode() == row["decision"]
        assert answer.as_numpy("score")[0] == row["score"]
        assert answer.as_numpy("threshold")[0] == row["threshold"]
        # The file itself, decoded by the server as edgead run decodes it.
        same(ask(peer, "encoded", np.array([path.read_bytes()], np.object_), "BYTES"), [inspector(image)])


def test_several_images_and_chosen_outputs(served, peer, plate, made_images):
    server, inspector = served
    images = np.stack([read_image(path) for path in sorted((plate / "test" / "defect").iterdir())])
    same(ask(peer, "image", images, "UINT8"), [inspector(image) for image in images])
    answer = ask(peer, "image", images, "UINT8", outputs=["decision", "score"], request_id="4711")
    assert {output["name"] for output in outputs_of(answer)} == {"decision", "score"}
    assert answer.as_numpy("map") is None
    files = sorted((made_images / "broken" / "test" / "good").iterdir())[:3]  # real cells: grey, of another size
    expected = [inspector(read_image(path)) for path in files]
    same(ask(peer, "encoded", np.array([f.read_bytes() for f in files], np.object_), "BYTES"), expected)
    same(ask(peer, "image", images, "UINT8", model_version=server.model.version), [inspector(i) for i in images])


def outputs_of(answer):
    response = answer.get_response()
    return response["outputs"] if isinstance(response, dict) else [{"name": one.name} for one in response.outputs]


def test_what_it_says_of_itself(served, peer):
    server, inspector = served
    library, client = peer
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("plate")
    options = {} if library is httpclient else {"as_json": True}
    about = client.get_model_metadata("plate", **options)
    assert about["versions"] == [inspector.bundle[1][:12]] == [server.model.version]
    assert [one["name"] for one in about["inputs"]] == ["image", "encoded"]
    assert [one["name"] for one in about["outputs"]][:2] == ["decision", "score"]
    assert client.get_server_metadata(**options)["name"] == "edgead"


@pytest.mark.parametrize(
    ("name", "array", "datatype", "options", "said"),
    [
        ("image", np.zeros((8, 8), np.uint8), "UINT8", {}, "rows, columns"),
        ("image", np.zeros((3, 8, 8), np.uint8), "UINT8", {}, "rows, columns"),
        ("image", np.zeros((8, 8, 4), np.uint8), "UINT8", {}, "rows, columns"),
        ("image", np.zeros((8, 0, 3), np.uint8), "UINT8", {}, "nothing to judge"),
        ("image", np.zeros((257, 1, 1, 3), np.uint8), "UINT8", {}, "at most 256 images"),
        ("image", np.zeros((8, 8, 3), np.float32), "FP32", {}, "'image' is UINT8, not 'FP32'"),
        ("picture", np.zeros((8, 8, 3), np.uint8), "UINT8", {}, "send one input"),
        ("encoded", np.array([b"no image"], np.object_), "BYTES", {}, "image 1"),
        ("image", np.zeros((8, 8, 3), np.uint8), "UINT8", {"model": "other"}, "there is no model 'other'"),
        ("image", np.zeros((8, 8, 3), np.uint8), "UINT8", {"model_version": "1"}, "no version '1'"),
        ("image", np.zeros((8, 8, 3), np.uint8), "UINT8", {"outputs": ["verdict"]}, "outputs are some of"),
    ],
)
def test_bad_requests_get_an_error_of_the_protocol(peer, name, array, datatype, options, said):
    from tritonclient.utils import InferenceServerException

    with pytest.raises(InferenceServerException, match=said):
        ask(peer, name, array, datatype, **options)


def post(server, body, headers=None, path="v2/models/plate/infer"):
    request = urllib.request.Request(server.url + path, body, headers or {})
    try:
        with urllib.request.urlopen(request, timeout=LONG_S) as answer:
            return answer.status, json.load(answer)
    except HTTPError as error:
        with error:
            return error.code, json.load(error)


def request(data=None, **changes):
    tensor = {"name": "image", "datatype": "UINT8", "shape": [2, 2, 3], "data": data or list(range(12))}
    return json.dumps({"inputs": [{**tensor, **changes}]}).encode()


def test_plain_json_is_enough(served):
    server, inspector = served
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    expected = inspector(image)
    for data in (image.ravel().tolist(), image.tolist()):
        status, answer = post(server, request(data))
        assert status == 200
        outputs = {one["name"]: one for one in answer["outputs"]}
        assert outputs["decision"]["data"] == [expected.decision.value]
        assert outputs["score"]["data"] == [expected.score]
        assert outputs["map"]["data"] == expected.map.astype(float).ravel().tolist()


@pytest.mark.parametrize(
    ("body", "headers", "said"),
    [
        (b"", {}, "no request of the protocol"),
        (b"[]", {}, "no request of the protocol"),
        (b'{"inputs": []}', {}, "send one input"),
        (request([0] * 11), {}, "is 12 bytes, and 11 were sent"),
        (request([256] + [0] * 11), {}, "from 0 to 255"),
        (request([-1] + [0] * 11), {}, "from 0 to 255"),
        (request([0.5] * 12), {}, "from 0 to 255"),
        (request([True] * 12), {}, "from 0 to 255"),
        (request([["a"]]), {}, "from 0 to 255"),
        (request([[1, 2], [3]]), {}, "cannot be read"),
        (request(np.zeros((3, 2, 2), int).tolist()), {}, "have not the shape"),
        (request(shape=[2**70, 2, 3]), {}, "is no shape"),
        (request(shape=[-2, -2, 3]), {}, "nothing to judge"),
        (request() + b"rest", {"Inference-Header-Content-Length": str(len(request()))}, "4 bytes follow"),
        (request(), {"Inference-Header-Content-Length": "999999"}, "length of the JSON"),
        (request(parameters={"binary_data_size": 12}), {}, "either data or binary"),
        (request(name="encoded", datatype="BYTES", shape=[1], data=["!"]), {}, "cannot be read as text"),
        (request(), {"Content-Encoding": "gzip"}, "uncompressed"),
    ],
)
def test_broken_bodies_get_an_error_and_no_decision(served, body, headers, said):
    server, _ = served
    judged = dict(server.model.judged)
    status, answer = post(server, body, headers)
    assert (status, list(answer)) == (400, ["error"])
    assert said in answer["error"]
    assert server.model.judged == judged


def test_a_raw_grpc_request_that_contradicts_itself(served):
    import grpc
    from tritonclient.grpc import service_pb2 as messages
    from tritonclient.grpc import service_pb2_grpc as services

    server, inspector = served
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    with grpc.insecure_channel(server.target) as channel:
        stub = services.GRPCInferenceServiceStub(channel)

        def asked(*, raw=(), typed=(), shape=(2, 2, 3), name="image", datatype="UINT8"):
            question = messages.ModelInferRequest(model_name="plate", raw_input_contents=raw)
            question.inputs.add(name=name, datatype=datatype, shape=shape).contents.uint_contents.extend(typed)
            return stub.ModelInfer(question, timeout=LONG_S)

        typed = asked(typed=image.ravel().tolist())
        assert asked(raw=[image.tobytes()]).raw_output_contents[1] == typed.raw_output_contents[1]
        assert np.frombuffer(typed.raw_output_contents[1]) == [inspector(image).score]
        for wrong in (
            {"raw": [image.tobytes()], "typed": [1]},
            {"raw": [image.tobytes()] * 2},
            {"typed": [300] * 12},
            {"raw": [b"\xff\xff\xff\xffx"], "name": "encoded", "datatype": "BYTES", "shape": (1,)},
            {"raw": [b"\x01"], "name": "encoded", "datatype": "BYTES", "shape": (1,)},
            {},
        ):
            with pytest.raises(grpc.RpcError) as caught:
                asked(**wrong)
            assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        with pytest.raises(grpc.RpcError) as caught:
            stub.RepositoryModelUnload(messages.RepositoryModelUnloadRequest(model_name="plate"), timeout=LONG_S)
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_clients_at_once_get_their_own_answers(served, plate):
    server, inspector = served
    images = [read_image(path) for path in sorted((plate / "test").rglob("*.png"))]
    expected = [inspector(image) for image in images]
    assert len({one.score for one in expected}) == len(images)
    problems = []

    def work(kind, offset):
        library, client = clients(server)[kind]
        try:
            for turn in range(2 * len(images)):
                place = (turn + offset) % len(images)
                same(ask((library, client), "image", images[place], "UINT8"), [expected[place]])
        except BaseException as error:
            problems.append(error)
            raise
        finally:
            client.close()

    threads = [threading.Thread(target=work, args=(kind, 3 * at)) for at, kind in enumerate(("rest", "grpc") * 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG_S)
    assert problems == []


def test_not_ready_and_no_decision_before_the_self_test_passed(plate_bundle):
    from tritonclient.utils import InferenceServerException

    class Ill:
        """An inspector whose device decides otherwise than the model did."""

        def __init__(self, inner):
            self._inner, self.problems = inner, ["reference 3"]

        def __getattr__(self, name):
            return getattr(self._inner, name)

        def __call__(self, frame):
            return self._inner(frame)

        def self_test(self):
            return self.problems or self._inner.self_test()

    with Inspector.open(plate_bundle, backend="onnxruntime") as inspector:
        ill = Ill(inspector)
        with InferenceServer(ill, "127.0.0.1:0", "127.0.0.1:0") as server:
            both = clients(server)

            def refused():
                for library, client in both.values():
                    assert client.is_server_live()
                    assert not client.is_server_ready()
                    assert not client.is_model_ready("plate")
                    with pytest.raises(InferenceServerException, match="self-test has not passed"):
                        ask((library, client), "image", np.zeros((8, 8, 3), np.uint8), "UINT8")

            refused()
            assert server.self_test() == ["reference 3"]
            refused()
            ill.problems = []
            assert server.self_test() == []
            for library, client in both.values():
                assert client.is_server_ready()
                assert ask((library, client), "image", np.zeros((8, 8, 3), np.uint8), "UINT8").as_numpy("decision")
                client.close()


def test_a_token_is_asked_for(plate_bundle):
    from tritonclient.utils import InferenceServerException

    with Inspector.open(plate_bundle, backend="onnxruntime") as inspector:
        for addresses in (("0.0.0.0:0", "127.0.0.1:0"), ("127.0.0.1:0", "0.0.0.0:0")):
            with pytest.raises(ConfigError, match="needs a token: --token FILE"):
                InferenceServer(inspector, *addresses)
        with InferenceServer(inspector, "127.0.0.1:0", "127.0.0.1:0", "open sesame") as server:
            server.self_test()
            with pytest.raises(ConfigError, match="gRPC"):
                InferenceServer(inspector, "127.0.0.1:0", server.target)
            for library, client in clients(server).values():
                assert client.is_server_ready()
                image = np.zeros((8, 8, 3), np.uint8)
                for headers in (None, {"authorization": "Bearer wrong"}):
                    with pytest.raises(InferenceServerException, match="Bearer TOKEN"):
                        ask((library, client), "image", image, "UINT8", headers=headers)
                answer = ask(
                    (library, client), "image", image, "UINT8", headers={"authorization": "Bearer open sesame"}
                )
                assert answer.as_numpy("decision").shape == (1,)
                client.close()
            assert post(server, request(), {"Authorization": "Bearer open sesame", "Origin": "http://evil"})[0] == 403


def test_the_command(launch, plate_bundle, plate):
    addresses = ["--rest", "127.0.0.1:0", "--grpc", "127.0.0.1:0"]
    with launch(["serve", plate_bundle, *addresses, "--backend", "onnxruntime"]) as child:
        words = next(line for line in child.stderr if line.startswith("ready: ")).split()
        client = grpcclient.InferenceServerClient(words[-1])
        image = read_image(next((plate / "test" / "good").iterdir()))
        assert ask((grpcclient, client), "image", image, "UINT8").as_numpy("decision")[0] in (b"OK", b"ANOMALY")
        client.close()
        status, _ = post_to(words[1])
        assert status == 200
        child.send_signal(signal.SIGTERM)
        assert child.wait(LONG_S) == 0


def post_to(url):
    with urllib.request.urlopen(url, timeout=LONG_S) as answer:
        return answer.status, json.load(answer)


def test_trust_and_missing_libraries(process, edgead, plate_bundle, tmp_path):
    key, trust = tmp_path / "r.key", tmp_path / "trust.json"
    assert edgead("keygen", key, "--add-to", trust).code == 0
    outcome = edgead("serve", plate_bundle, "--trust", trust, "--rest", "127.0.0.1:0", "--grpc", "127.0.0.1:0")
    assert (outcome.code, "is not signed" in outcome.error) == (2, True)
    outcome = process("serve", plate_bundle, without=["grpc"])
    assert (outcome.code, "pip install 'edgead[serve]'" in outcome.error) == (2, True)
    outcome = edgead("serve", plate_bundle, "--rest", "0.0.0.0:0")
    assert (outcome.code, "needs a token" in outcome.error) == (2, True)
