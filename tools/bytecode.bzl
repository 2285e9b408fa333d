"""The bytecode of a library, compiled once and not by each test: Bazel's sandbox is new each time, and nothing that is written there stays."""

# Of the toolchain's Python: see python_env.bzl.
_CACHE_TAG = "cpython-311"

def _bytecode_impl(ctx):
    outputs = []
    arguments = ctx.actions.args()
    sources = [file for file in ctx.files.srcs if file.extension == "py"]
    for source in sources:
        folder, _, name = source.short_path[len(ctx.label.package) + 1:].rpartition("/")
        path = "__pycache__/{}.{}.pyc".format(name[:-len(".py")], _CACHE_TAG)
        output = ctx.actions.declare_file(folder + "/" + path if folder else path)
        outputs.append(output)
        arguments.add_all([source, output])
    ctx.actions.run(
        executable = ctx.executable._compiler,
        arguments = [arguments],
        inputs = sources,
        outputs = outputs,
        mnemonic = "PythonBytecode",
        progress_message = "Compiling {}".format(ctx.label),
    )
    return [DefaultInfo(files = depset(outputs), runfiles = ctx.runfiles(files = outputs))]

bytecode = rule(
    implementation = _bytecode_impl,
    attrs = {
        "srcs": attr.label_list(
            mandatory = True,
            allow_files = [".py", ".pyi"],
            doc = "Of this package. Their bytecode lies where Python looks for it.",
        ),
        "_compiler": attr.label(
            default = "//tools:compile_bytecode",
            executable = True,
            cfg = "exec",
        ),
    },
)
