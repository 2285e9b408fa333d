"""tools/generate_protos.py and the plugin: what they make of small .proto files."""

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tools import generate_protos

SHOP = """
syntax = "proto3";
package shop;
// Sells things.
service ShopService {
  // Answers when "it" is sold.
  rpc Buy(Order) returns (Order.Receipt);
  rpc Watch(Order) returns (stream Order);
}
message Order { string what = 1; message Receipt { uint32 number = 1; } }
"""
WORDS = """
syntax = "proto3";
message Word { string text = 1; }
"""
UPLOAD = """
syntax = "proto3";
service UploadService { rpc Upload(stream Part) returns (Part); }
message Part {}
"""


def write(folder: Path, **texts: str) -> list[Path]:
    paths = []
    for name, text in texts.items():
        path = folder / f"{name}.proto"
        path.write_text(text)
        paths.append(path)
    return sorted(paths)


class FakeChannel:
    """Answers each method with what it was asked to make."""

    def unary_unary(
        self, path: str, request_serializer: object, response_deserializer: object
    ) -> tuple[object, ...]:
        return "unary", path, request_serializer, response_deserializer

    def unary_stream(
        self, path: str, request_serializer: object, response_deserializer: object
    ) -> tuple[object, ...]:
        return "stream", path, request_serializer, response_deserializer


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The generated shop_rpc, imported beside the project's real ray_mono.protobuf."""
    out = tmp_path / "out"
    generate_protos.generate(write(tmp_path, shop=SHOP), out)
    package = importlib.import_module("ray_mono.protobuf")
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(out)])
    yield importlib.import_module("ray_mono.protobuf.shop_rpc")
    for name in ("shop_pb2", "shop_rpc"):
        sys.modules.pop(f"ray_mono.protobuf.{name}", None)


def test_a_stub_asks_its_channel_for_each_method(shop: ModuleType) -> None:
    from ray_mono.protobuf import shop_pb2

    for stub in (shop.ShopServiceStub(FakeChannel()), shop.ShopServiceAsyncStub(FakeChannel())):
        kind, path, serialize, parse = stub.Buy
        assert (kind, path) == ("unary", "/shop.ShopService/Buy")
        assert serialize(shop_pb2.Order(what="tea")) == shop_pb2.Order(what="tea").SerializeToString()
        assert parse(shop_pb2.Order.Receipt(number=3).SerializeToString()).number == 3
        assert stub.Watch[:2] == ("stream", "/shop.ShopService/Watch")


def test_handlers_name_the_methods_of_the_servicer(shop: ModuleType) -> None:
    from ray_mono.protobuf import shop_pb2

    servicer = shop.ShopServiceServicer()
    handlers = shop.shop_service_handlers(servicer)
    buy = handlers["/shop.ShopService/Buy"]
    assert (buy.function, buy.streaming) == (servicer.Buy, False)
    assert (buy.request_type, buy.reply_type) == (shop_pb2.Order, shop_pb2.Order.Receipt)
    assert handlers["/shop.ShopService/Watch"].streaming
    assert shop.ShopServiceServicer.__doc__ == "Sells things."
    assert shop.ShopServiceServicer.Buy.__doc__ == "Answers when 'it' is sold."


def test_generated_services_do_not_import_grpc(shop: ModuleType) -> None:
    code = "import sys, ray_mono.protobuf.core_worker_rpc; sys.exit('grpc' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}).returncode == 0
    )


def test_nothing_is_done_when_nothing_changed(tmp_path: Path) -> None:
    protos, out = write(tmp_path, shop=SHOP, words=WORDS), tmp_path / "out"
    assert generate_protos.generate(protos, out)
    assert not (out / "words_rpc.py").exists()
    assert not generate_protos.generate(protos, out)
    write(tmp_path, words=WORDS.replace("text", "letters"))
    assert generate_protos.generate(protos, out)


def test_modules_of_a_removed_file_go(tmp_path: Path) -> None:
    protos, out = write(tmp_path, shop=SHOP, words=WORDS), tmp_path / "out"
    generate_protos.generate(protos, out)
    generate_protos.generate(protos[1:], out)
    assert sorted(path.name for path in out.glob("*_*.py*") if path.name != "__init__.py") == [
        "words_pb2.py",
        "words_pb2.pyi",
        "words_pb2_grpc.py",
    ]


def test_every_output_is_there_for_bazel(tmp_path: Path) -> None:
    generate_protos.generate(write(tmp_path, words=WORDS), tmp_path / "out", every_output=True)
    assert (tmp_path / "out" / "words_rpc.py").read_text().startswith('"""Generated')


def test_a_stream_of_requests_is_refused_by_name(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(generate_protos.GenerationFailed):
        generate_protos.generate(write(tmp_path, upload=UPLOAD), tmp_path / "out")
    assert "UploadService.Upload takes a stream of requests" in capfd.readouterr().err
    assert not (tmp_path / "out" / "upload_pb2.py").exists()
