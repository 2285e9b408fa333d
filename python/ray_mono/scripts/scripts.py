"""`ray-mono`: the commands and their options. What a command does is in a module of its own, imported when it
is called, so that `--help` and mistakes are answered at once.

Exit status: 0 done, 1 not done (the message says why), 2 the command line makes no sense.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from typing import Any

import click

from ray_mono.common.process import hide_argument
from ray_mono.common.version import VERSION

PORT = click.IntRange(0, 65535)
# Options of Ray's whose parts do not exist here yet: known, so that the answer is better than "no such
# option".
NOT_YET = {
    "--dashboard-host": "the dashboard",
    "--dashboard-port": "the dashboard",
    "--dashboard-agent-listen-port": "the dashboard",
    "--ray-client-server-port": "the client server (ray://)",
    "--metrics-export-port": "the export of metrics",
    "--autoscaling-config": "the autoscaler",
    "--runtime-env-agent-port": "the agent for runtime environments",
}


class Amounts(click.ParamType):
    """A JSON object of whole numbers."""

    name = "JSON"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> dict[str, float]:
        from ray_mono._private.node.resource_spec import custom_resources

        if isinstance(value, dict):
            return value
        accepted = """accepted is an object of whole numbers such as '{"A": 1, "B": 2}'."""
        try:
            amounts = json.loads(value)
        except ValueError as error:
            self.fail(f"{value!r} is not JSON ({error}); {accepted}")
        try:
            return custom_resources(amounts)
        except (TypeError, ValueError) as error:
            self.fail(f"{error}; {accepted}")


class Settings(click.ParamType):
    """A JSON object."""

    name = "JSON"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        try:
            settings = json.loads(value)
        except ValueError:
            settings = None
        if not isinstance(settings, dict):
            self.fail(f"""{value!r} is no JSON object; accepted is '{{"health_check_period_ms": 1000}}'.""")
        return settings


class Labels(click.ParamType):
    """name=value,… or a JSON object of texts."""

    name = "LABELS"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, str]:
        if isinstance(value, dict):
            return value
        try:
            if value.startswith("{"):
                labels = json.loads(value)
            else:
                pairs = (pair.split("=", 1) for pair in value.split(",") if value)
                labels = {name.strip(): text.strip() for name, text in pairs}
        except ValueError:
            self.fail(
                f"{value!r} does not read as labels; accepted is name=value,name=value or a JSON object of"
                " texts."
            )
        return self._checked(labels, "labels")

    def _checked(self, labels: Any, what: str) -> dict[str, str]:
        from ray_mono._private.label_selectors import check_labels

        try:
            check_labels(labels, what)
        except (TypeError, ValueError) as error:
            self.fail(f"{error}.")
        return dict(labels)


class LabelsFile(Labels):
    """A YAML file of them."""

    name = "FILE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, str]:
        if isinstance(value, dict):
            return value
        try:
            import yaml
        except ImportError:
            self.fail("it needs PyYAML, which is not installed: pip install 'ray_mono[yaml]'.")
        try:
            with open(value, encoding="utf-8") as file:
                labels = yaml.safe_load(file)
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            self.fail(f"{value} cannot be read: {error}")
        return self._checked(labels, value)


def refuse_what_is_not_yet(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options of NOT_YET, which end the command."""

    def refuse(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
        if value is not None:
            option = param.opts[0]
            raise click.UsageError(
                f"{option} {value}: {NOT_YET[option]} is not part of this version yet; leave it out."
            )

    for option, what in reversed(NOT_YET.items()):
        function = click.option(
            option,
            expose_value=False,
            callback=refuse,
            metavar="…",
            help=f"Not part of this version yet: {what}.",
        )(function)
    return function


def address_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Which cluster a command speaks to."""
    function = click.option(
        "--redis-password",
        metavar="SECRET",
        help="The cluster's secret; needed only where RAY_MONO_AUTH_TOKEN, the session and"
        " ~/.ray_mono/auth_token have none,"
        " which are better places: every user of the machine can read a command line until the program has"
        " hidden it.",
    )(function)
    return click.option(
        "--address",
        metavar="HOST:PORT",
        help="The cluster; several with commas between them, where its head may be in several places"
        " [default: RAY_MONO_ADDRESS, else this user's on this machine].",
    )(function)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(VERSION, prog_name="ray_mono")
def cli() -> None:
    """Starts, shows and stops clusters of ray_mono."""


@cli.command()
@click.option("--head", is_flag=True, help="Start a new cluster; this is its first node.")
@click.option(
    "--address",
    metavar="HOST:PORT",
    help="Add a node to this cluster ('auto': the one on this machine; several with commas between them,"
    " where its head may be in several places).",
)
@click.option(
    "--port", type=PORT, help="With --head: where the cluster is reached; 0 is any free port [default: 6379]."
)
@click.option(
    "--redis-password",
    metavar="SECRET",
    help="The cluster's secret; better in the variable RAY_MONO_AUTH_TOKEN or the file that"
    " RAY_MONO_AUTH_TOKEN_PATH names,"
    " since every user of the machine can read a command line until the program has hidden it. A new cluster"
    " draws one"
    " where none is given; '' lets everybody in. With --redis-address it is that Redis's password too.",
)
@click.option(
    "--redis-address",
    metavar="ADDRESS",
    help="With --head: keep the cluster's tables in this Redis, not in a file. host:port; several, with"
    " commas between them, of Sentinels or of a Redis Cluster; redis://user:password@host:port/0;"
    " rediss://… over TLS; redis+sentinel://host:port/service. With a password better in the variable"
    " RAY_MONO_REDIS_ADDRESS.",
)
@click.option(
    "--redis-username", metavar="NAME", help="With --redis-address: that Redis's user [default: its default]."
)
@click.option(
    "--redis-namespace",
    metavar="NAME",
    help="With --redis-address: names this cluster among those that share it. A head of the same name takes"
    " the cluster over [default: default].",
)
@click.option(
    "--redis-embedded", is_flag=True, help="With --head: keep them in a redis-server that is started along."
)
@click.option(
    "--node-ip-address", metavar="IP", help="Where others reach this node [default: this machine's address]."
)
@click.option("--node-manager-port", type=PORT, help="Of this node's raylet [default: any free port].")
@click.option(
    "--object-manager-port", type=PORT, help="Of this node's object manager [default: any free port]."
)
@click.option("--num-cpus", type=click.IntRange(0), help="[default: what this process may use]")
@click.option("--num-gpus", type=click.IntRange(0), help="[default: the NVIDIA GPUs that there are]")
@click.option("--memory", type=click.IntRange(0), metavar="BYTES", help="[default: 70% of what is free]")
@click.option(
    "--object-store-memory",
    type=click.IntRange(1),
    metavar="BYTES",
    help="[default: 30% of the free memory, at most 10 GB unless /dev/shm has room for more]",
)
@click.option(
    "--object-spilling-directory",
    metavar="DIR",
    help="Where objects go for which the store has no room: a directory, or a storage as s3://bucket/path"
    " [default: the session's directory].",
)
@click.option("--resources", type=Amounts(), help="""More resources of this node: '{"A": 1}'.""")
@click.option("--labels", type=Labels(), help="Labels of this node: name=value,…")
@click.option("--labels-file", type=LabelsFile(), help="More of them in a YAML file; --labels comes first.")
@click.option(
    "--system-config",
    type=Settings(),
    help="""Settings of the cluster, by Ray's names: '{"health_check_period_ms": 1000}'.""",
)
@click.option(
    "--enable-object-reconstruction",
    is_flag=True,
    expose_value=False,
    help="Lost objects are always made again: it changes nothing.",
)
@click.option(
    "--temp-dir", metavar="DIR", help="Where sessions lie [default: RAY_MONO_TMPDIR, else /tmp/ray_mono]."
)
@click.option(
    "--block", is_flag=True, help="Stay until the node ends; end it on Ctrl-C, or when this process ends."
)
@click.option("--include-dashboard", type=bool, help="There is none yet: only false is accepted.")
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", show_default=True
)
@refuse_what_is_not_yet
def start(**options: Any) -> None:
    """Starts a node: the head of a new cluster, or one more node of a cluster."""
    if options.pop("include_dashboard"):
        raise click.UsageError("--include-dashboard true: the dashboard is not part of this version yet.")
    from ray_mono.scripts.start import start_node

    start_node(**options)


@cli.command()
@click.option(
    "--address", metavar="HOST:PORT", help="Only the nodes of this cluster [default: all of this user's]."
)
@click.option("--temp-dir", metavar="DIR", help="Where the sessions lie, if not in the usual place.")
@click.option(
    "--grace-period",
    type=click.FloatRange(0),
    default=10,
    show_default=True,
    metavar="SECONDS",
    help="How long processes may take to end before they are killed.",
)
@click.option("--force", is_flag=True, help="Kill at once.")
def stop(**options: Any) -> None:
    """Ends this user's nodes on this machine, and waits until nothing of them is left."""
    from ray_mono.scripts.stop import stop_nodes

    stop_nodes(**options)


@cli.command()
@address_options
def status(address: str | None, redis_password: str | None) -> None:
    """Shows the cluster's nodes, resources, what waits, and actors."""
    from ray_mono.scripts.status import show_status

    show_status(address, redis_password)


@cli.command()
@address_options
@click.argument("id", metavar="ID", required=False)
@click.option("--json", "as_json", is_flag=True, help="With all links, numbers and ids.")
def explain(id: str | None, as_json: bool, address: str | None, redis_password: str | None) -> None:
    """Says why an object, a task, an actor or a placement group waits, and what would help. ID: its id, in
    hex, or as it is printed. Ends with 1 where nobody knows it. Without an id, all that waits in the
    cluster."""
    from ray_mono.scripts.explain import explain as tell_why

    tell_why(id, as_json, address, redis_password)


@cli.command()
@address_options
@click.option(
    "--timeout", type=click.FloatRange(0, min_open=True), default=5, show_default=True, metavar="SECONDS"
)
def healthcheck(address: str | None, redis_password: str | None, timeout: float) -> None:
    """Ends with 0 where the cluster answers and has a living node, else with 1 and the reason."""
    from ray_mono.scripts.status import check_health

    check_health(address, redis_password, timeout)


@cli.command(name="drain-node", hidden=True)
@address_options
@click.option(
    "--node-id", metavar="ID", help="In hex [default: the cluster's node on this machine, if there is one]."
)
@click.option(
    "--reason",
    required=True,
    type=click.Choice(["DRAIN_NODE_REASON_IDLE_TERMINATION", "DRAIN_NODE_REASON_PREEMPTION"]),
    help="Nobody uses it, which is refused of a node in use; or its provider takes it away.",
)
@click.option("--reason-message", required=True, metavar="TEXT", help="For people.")
@click.option(
    "--deadline-remaining-seconds",
    type=int,
    metavar="SECONDS",
    help="When the node ends with all that is on it then [default: when nothing is left on it].",
)
def drain_node(**options: Any) -> None:
    """Has a node end, once what is on it has gone elsewhere: it takes nothing new, its actors are moved,
    values are copied to other nodes. Returns when the node has accepted that."""
    from ray_mono.scripts.drain_node import drain_node

    drain_node(**options)


@cli.command()
@click.option(
    "--only", default="", metavar="PATTERN", help="Lines with this in their name, or a group of this name."
)
@click.option("--quick", is_flag=True, help="Leave out what takes minutes or gigabytes.")
@click.option(
    "--duration-s",
    type=click.FloatRange(0, min_open=True),
    default=2,
    show_default=True,
    metavar="S",
    help="Of each line's repetitions.",
)
@click.option("--json", "json_path", metavar="FILE", help="Write all samples there.")
@click.option("--verbose", is_flag=True, help="Show what the measured processes print.")
def microbenchmark(**options: Any) -> None:
    """Measures tasks, actors and objects on clusters of its own on this machine."""
    from ray_mono.scripts.microbenchmark import run_microbenchmark

    run_microbenchmark(**options)


def main(prog_name: str = "ray-mono", command: click.Group | None = None) -> None:
    """Runs the command line of this process; does not return. command: instead of `cli`."""
    hide_argument("--redis-password")
    # It may hold a password, too.
    hide_argument("--redis-address")
    if importlib.util.find_spec("ray_mono.protobuf") is None or (
        importlib.util.find_spec("ray_mono.protobuf.gcs_pb2") is None
    ):
        sys.exit(
            "ray-mono: the code generated from protobuf/ is missing: run `pip install -e .` in the checkout,"
            " or use"
            " `./bazelw run //:ray_mono -- …`"
        )
    (command or cli)(prog_name=prog_name)


if __name__ == "__main__":
    main()
