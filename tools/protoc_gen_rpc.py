"""A protoc plugin: from `x.proto` makes `x_rpc.py`, the stubs, servicers and handler tables of its services.

The modules that grpcio-tools makes import grpc, which costs every worker memory and threads. These name only
the types of `ray_mono.rpc.surface`, so that the same stub works over any transport. protoc starts this file
as `protoc-gen-rpc`, with a CodeGeneratorRequest on standard input; `tools/generate_protos.py` is the one who
asks for it.

A file without services gets no module, unless the option `every_output` is given: Bazel has to know the names
of a rule's outputs before it has read the files.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from google.protobuf.compiler import plugin_pb2
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FileDescriptorProto,
    MethodDescriptorProto,
    ServiceDescriptorProto,
)

# Field numbers of FileDescriptorProto.service and ServiceDescriptorProto.method: where a comment belongs.
SERVICE_FIELD = 6
METHOD_FIELD = 2

SERVICER_COMMENT = "The server's side: a service overrides the methods that it answers."


class UnsupportedMethod(Exception):
    """A method that the transports cannot carry."""


@dataclass(frozen=True)
class Method:
    """One rpc, with its message types as Python expressions."""

    name: str
    path: str
    request: str
    reply: str
    streaming: bool
    comment: str


@dataclass(frozen=True)
class Service:
    name: str
    comment: str
    methods: tuple[Method, ...]


def python_module(proto_name: str) -> tuple[str, str]:
    """("a.b", "c_pb2") for "a/b/c.proto"."""
    *folders, file = proto_name.removesuffix(".proto").split("/")
    return ".".join(folders), file.replace("-", "_") + "_pb2"


def message_names(messages: Iterable[DescriptorProto], prefix: str = "") -> Iterator[str]:
    """The names of the messages and of those nested in them, without the package: "Outer", "Outer.Inner"."""
    for message in messages:
        yield prefix + message.name
        yield from message_names(message.nested_type, prefix + message.name + ".")


def homes(files: Iterable[FileDescriptorProto]) -> dict[str, tuple[FileDescriptorProto, str]]:
    """For each message's full name, with its leading dot: the file that defines it, and its name in there."""
    found = {}
    for file in files:
        package = f".{file.package}." if file.package else "."
        for name in message_names(file.message_type):
            found[package + name] = (file, name)
    return found


def comments(file: FileDescriptorProto) -> dict[tuple[int, ...], str]:
    """Each element's comment as one paragraph. Lines that begin with "----" are headings."""
    found = {}
    for location in file.source_code_info.location:
        text = location.leading_comments or location.trailing_comments
        words = " ".join(line for line in text.splitlines() if not line.strip().startswith("----")).split()
        if words:
            found[tuple(location.path)] = " ".join(words).replace("\\", "\\\\").replace('"', "'")
    return found


def read_services(
    file: FileDescriptorProto, home: dict[str, tuple[FileDescriptorProto, str]]
) -> tuple[list[Service], set[tuple[str, str]]]:
    """The file's services, and the modules that their messages come from."""
    modules = set()
    texts = comments(file)

    def expression(type_name: str) -> str:
        owner, name = home[type_name]
        module = python_module(owner.name)
        modules.add(module)
        return f"{module[1]}.{name}"

    def read_method(service: ServiceDescriptorProto, method: MethodDescriptorProto, comment: str) -> Method:
        full_name = f"{file.package}.{service.name}" if file.package else service.name
        if method.client_streaming:
            raise UnsupportedMethod(
                f"{file.name}: {service.name}.{method.name} takes a stream of requests; "
                "accepted are one request with one reply, and one request with a stream of replies"
            )
        return Method(
            name=method.name,
            path=f"/{full_name}/{method.name}",
            request=expression(method.input_type),
            reply=expression(method.output_type),
            streaming=method.server_streaming,
            comment=comment,
        )

    services = []
    for number, service in enumerate(file.service):
        methods = tuple(
            read_method(service, method, texts.get((SERVICE_FIELD, number, METHOD_FIELD, index), ""))
            for index, method in enumerate(service.method)
        )
        services.append(Service(service.name, texts.get((SERVICE_FIELD, number), ""), methods))
    return services, modules


def snake_case(name: str) -> str:
    """gcs_service for GcsService, kv_api for KVApi."""
    words = re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1_\2", name)
    return re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", words).lower()


def stub_lines(service: Service, prefix: str) -> Iterator[str]:
    """The class of the stub. `prefix` is "" for the blocking types and "Async" for those of asyncio."""
    yield f"class {service.name}{prefix}Stub:"
    yield f'    """Calls {service.name} through {"an asyncio" if prefix else "a reactor"} channel."""'
    yield ""
    for method in service.methods:
        kind = f"{prefix}UnaryStream" if method.streaming else f"{prefix}UnaryUnary"
        streaming = ", is_streaming=True" if method.streaming else ""
        yield f"    {method.name}: {kind}[{method.request}, {method.reply}] = stub_method("
        yield f'        "{method.path}", {method.request}, {method.reply}{streaming}'
        yield "    )"
    yield ""
    yield "    def __init__(self, channel: Channel) -> None:"
    yield "        self.channel = channel"


def servicer_lines(service: Service) -> Iterator[str]:
    yield f"class {service.name}Servicer:"
    yield f'    """{service.comment or SERVICER_COMMENT}"""'
    for method in service.methods:
        yield ""
        reply = f"AsyncIterator[{method.reply}]" if method.streaming else method.reply
        yield f"    {'' if method.streaming else 'async '}def {method.name}("
        yield f"        self, request: {method.request}, context: CallContext"
        yield f"    ) -> {reply}:"
        if method.comment:
            yield f'        """{method.comment}"""'
        yield f'        raise NotImplementedError("{service.name}.{method.name}")'


def handler_lines(service: Service) -> Iterator[str]:
    signature = f"servicer: {service.name}Servicer"
    yield f"def {snake_case(service.name)}_handlers({signature}) -> dict[str, Handler[Any, Any]]:"
    yield '    """What a server answers, by path."""'
    yield "    return {"
    for method in service.methods:
        yield f'        "{method.path}": Handler('
        yield f"            function=servicer.{method.name},"
        yield f"            request_type={method.request},"
        yield f"            reply_type={method.reply},"
        yield f"            streaming={method.streaming},"
        yield "        ),"
    yield "    }"


def module_text(file: FileDescriptorProto, home: dict[str, tuple[FileDescriptorProto, str]]) -> str:
    """The whole module; a header only where the file has no services. Raises UnsupportedMethod."""
    services, modules = read_services(file, home)
    lines = [f'"""Generated by tools/protoc_gen_rpc.py from {file.name}. Do not edit."""', ""]
    if services:
        surface = [
            "AsyncUnaryStream",
            "AsyncUnaryUnary",
            "CallContext",
            "Channel",
            "Handler",
            "UnaryStream",
            "UnaryUnary",
        ]
        lines += [
            "from __future__ import annotations",
            "",
            "from collections.abc import AsyncIterator",
            "from typing import Any",
            "",
        ]
        lines += [
            f"from {package} import {module}" if package else f"import {module}"
            for package, module in sorted(modules)
        ]
        lines += ["from ray_mono.rpc.surface import (", *(f"    {name}," for name in surface), ")"]
        lines += ["from ray_mono.rpc.stub_method import stub_method"]
    for service in services:
        for block in (
            stub_lines(service, ""),
            stub_lines(service, "Async"),
            servicer_lines(service),
            handler_lines(service),
        ):
            lines += ["", "", *block]
    return "\n".join(lines).rstrip() + "\n"


def generate(request: plugin_pb2.CodeGeneratorRequest) -> plugin_pb2.CodeGeneratorResponse:
    response = plugin_pb2.CodeGeneratorResponse()
    response.supported_features = plugin_pb2.CodeGeneratorResponse.FEATURE_PROTO3_OPTIONAL
    home = homes(request.proto_file)
    wanted = set(request.file_to_generate)
    try:
        for file in request.proto_file:
            if file.name in wanted and (file.service or request.parameter == "every_output"):
                name = file.name.removesuffix(".proto").replace("-", "_") + "_rpc.py"
                response.file.add(name=name, content=module_text(file, home))
    except UnsupportedMethod as error:
        response.error = str(error)
    return response


if __name__ == "__main__":
    sys.stdout.buffer.write(
        generate(plugin_pb2.CodeGeneratorRequest.FromString(sys.stdin.buffer.read())).SerializeToString()
    )
