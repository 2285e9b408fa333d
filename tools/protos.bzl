"""Python code from .proto files, made by tools/generate_protos.py with the grpcio-tools of the toolchain's virtualenv."""

_KINDS = ["_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_rpc.py"]

def _python_protos_impl(ctx):
    init = ctx.actions.declare_file("__init__.py")
    outputs = [init] + [
        ctx.actions.declare_file(proto.basename[:-len(".proto")] + kind)
        for proto in ctx.files.srcs
        for kind in _KINDS
    ]
    arguments = ctx.actions.args()
    arguments.add("--every-output")
    arguments.add("--out", init.dirname)
    arguments.add_all(ctx.files.srcs)
    ctx.actions.run(
        executable = ctx.executable._generator,
        arguments = [arguments],
        inputs = ctx.files.srcs,
        outputs = outputs,
        mnemonic = "PythonProtos",
        progress_message = "Generating Python code from protobuf/",
    )
    return [DefaultInfo(files = depset(outputs), runfiles = ctx.runfiles(files = outputs))]

python_protos = rule(
    implementation = _python_protos_impl,
    attrs = {
        "srcs": attr.label_list(
            mandatory = True,
            allow_files = [".proto"],
            doc = "All of them in one folder. Their modules appear in the folder of the target.",
        ),
        "_generator": attr.label(
            default = "//tools:generate_protos",
            executable = True,
            cfg = "exec",
        ),
    },
)
